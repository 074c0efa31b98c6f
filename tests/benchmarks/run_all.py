"""Run the benchmarks, each in its own process, and write RESULTS.md and results.json.

    python tests/benchmarks/run_all.py --json
    python tests/benchmarks/run_all.py --rows warm_start_seconds bucketed_over_padded

Prints one JSON object {row: {value, target, ok}}. All of them take about 25 minutes on an idle
machine with 2 cores, mostly for T5-base. With --rows only the scripts that measure these rows are
run, and all other rows keep their values.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import timing

HERE = Path(__file__).parent
RESULTS, KEPT = HERE / "RESULTS.md", HERE / "results.json"
STEP_ROWS = ("stage2_over_stage1", "stage2_over_full")
SCRIPTS = {
    "step_ratios.py": (
        *(f"{row}_{size}" for row in STEP_ROWS for size in ("small", "base")),
        "stage2_share_of_matmul_peak",
    ),
    "memory.py": ("stage2_memory_over_full",),
    "bucketing.py": ("bucketed_over_padded",),
    "evaluation.py": ("evaluation_over_fixed",),
    "input_pipeline.py": ("input_over_step",),
    "warm_start.py": ("warm_start_seconds",),
    "gpu_mfu.py": ("gpu_mfu",),
    "six_sources.py": ("six_sources_over_single",),
    "pieces.py": ("pieces_of_step",),
    "tricks.py": ("tricks",),
    "growth.py": ("growth_with_experts",),
    "expert_linears.py": tuple(f"bank_{bank}_over_none" for bank in ("wo", "qv", "all")),
    "scan_layers.py": ("scanned_over_unrolled_step", "scanned_over_unrolled_compile"),
}
# Benchmarks of data and of complete runs import TensorFlow, which should neither print notes nor
# reserve the GPU's memory.
TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pemt_jax")


def run(script: str) -> dict:
    """Return the rows that a script prints."""
    command = [sys.executable, str(HERE / script), "--json"]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | TENSORFLOW | timing.HUGE_PAGES,
    )
    if done.returncode:
        raise SystemExit(f"{script} ended with exit code {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> list[str]:
    """Return what describes this machine: processor, versions, settings."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = {
        key: next((x.partition(":")[2].strip() for x in lines if x.startswith(key)), "")
        for key in ("model name", "flags")
    }
    vectors = [flag for flag in names["flags"].split() if flag.startswith(("avx512f", "amx"))]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [
        f"{names['model name'] or platform.processor()}, {os.cpu_count()} cores "
        f"({' '.join(vectors)}), {platform.system()}",
        f"CPython {platform.python_version()}, {versions}",
        " ".join("=".join(pair) for pair in timing.HUGE_PAGES.items()),
    ]


def markdown(rows: dict) -> str:
    """Return the text of RESULTS.md: a table of all rows, then the details of each."""
    out = [
        "# Benchmark results",
        "",
        "Written by `python tests/benchmarks/run_all.py`. A value "
        "that is a ratio of times is one of minima; spread is (max - min) / median.",
        "",
        "| row | value | target | reached | machine |",
        "|---|---|---|---|---|",
    ]
    machines = list(dict.fromkeys(row["machine"] for row in rows.values()))
    for name, row in rows.items():
        value = "null" if row["value"] is None else number(row["value"])
        target = (
            ""
            if row["target"] is None
            else (f"{'>=' if row['at_least'] else '<='} {row['target']:g}")
        )
        reached = {True: "yes", False: "no", None: ""}[row["ok"]]
        out.append(
            f"| `{name}` | {value} | {target} | {reached} | {machines.index(row['machine']) + 1} |"
        )
    out += [
        "",
        *(f"Machine {i}: {text}." for i, text in enumerate(machines, 1)),
        "",
        "![Pieces of a stage-2 step](pieces.svg)",
    ]
    for name, row in rows.items():
        timed, facts = {}, []
        flatten(row["details"], (), timed, facts)
        out += ["", f"## {name}", ""]
        if timed:
            out += ["| seconds of | min | median | spread | repeats |", "|---|---|---|---|---|"]
            for place, t in timed.items():
                values = [number(t[key]) for key in ("min", "median", "spread", "repeats")]
                out.append(f"| {place} | {' | '.join(values)} |")
            out.append("")
        out += [f"- {path}: {number(value)}" for path, value in facts]
    return "\n".join([*out, ""])


def flatten(value, path: tuple[str, ...], timed: dict, facts: list) -> None:
    """Sort the details of a row into summaries of repeats and single values, by their path."""
    if isinstance(value, dict):
        if "spread" in value:
            timed[", ".join(path)] = value
            value = {
                k: v for k, v in value.items() if k not in ("min", "median", "spread", "repeats")
            }
        for name, part in value.items():
            flatten(part, (*path, name.replace("_", " ")), timed, facts)
    else:
        facts.append((", ".join(path), value))


def number(value) -> str:
    """Return a float with three digits, anything else unchanged."""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e5 else str(value)


def earlier() -> dict:
    """Return the rows measured earlier."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}


def main() -> None:
    names = [name for rows in SCRIPTS.values() for name in rows]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        default=names,
        metavar="ROW",
        help=f"of {', '.join(names)}",
    )
    options = parser.parse_args()
    rows = earlier()
    printed = {}
    for script, made in SCRIPTS.items():
        if not set(made) & set(options.rows) or not (HERE / script).is_file():
            continue
        print(f"{script} ...", file=sys.stderr, flush=True)
        about = "; ".join([f"{datetime.date.today()}", *machine()])
        for name, row in run(script).items():
            if name in options.rows:
                rows[name] = row | {"machine": about}
                printed[name] = {key: row[key] for key in ("value", "target", "ok")}
                if not options.json:
                    print(timing.line(name, row), flush=True)
        rows = {known: rows[known] for known in names if known in rows}
        KEPT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        RESULTS.write_text(markdown(rows), encoding="utf-8")
    if options.json:
        print(json.dumps(printed))


if __name__ == "__main__":
    main()
