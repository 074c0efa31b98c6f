"""The plan's arithmetic against the TPU's compiler, cell by cell, with the error by kind.

    python tests/benchmarks/plan_check.py                             # the cells of plan_cells.json
    python tests/benchmarks/plan_check.py --results FOLDER            # and those of plan_table.py
    python tests/benchmarks/plan_check.py --results FOLDER --compile "base, " --store

plan_cells.json has what the compiler said of the training steps that fit: of all the total, in GiB
as the table of pemt_jax/planning/README.md has it; of those that were compiled again the bytes by
kind. --compile does that with the cells whose name has the text, minutes each, where FOLDER has
them not; --store writes what FOLDER has into plan_cells.json.

Prints one line per cell, the errors by kind and method, the cells without bytes by kind, and those
in which the arithmetic is too low by more than 20 %; exit code 1 if one of these is not marked
`compile` there. Arguments are parameters, optimizer and batch with what the compiler's layouts add
to them; outputs are what is not written over an argument. Of these and of code the arithmetic has
nothing.
"""

import argparse
import collections
import dataclasses
import json
import os
import statistics
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import plan_table

from pemt_jax.common.storage import replacing
from pemt_jax.planning.arithmetic import estimate
from pemt_jax.planning.chips import CHIPS, GIB
from pemt_jax.planning.job import job_of_shape
from pemt_jax.planning.layout import Layout
from pemt_jax.planning.search import Candidate, Sizing
from pemt_jax.planning.shapes import shape_named

CELLS = Path(__file__).with_name("plan_cells.json")
TOO_LOW = -0.20
ARGUMENTS = ("frozen", "trainable", "optimizer", "batch")
STAGES = {"pemt_source": "stage 1", "pemt_target": "stage 2", "full": "full"}


def cells(results: Path | None) -> list[dict]:
    """Return the cells: what was compiled, its GiB and, where they are known, the bytes by kind."""
    found = {name_of(cell): cell for cell in json.loads(CELLS.read_text())}
    for path in sorted(results.glob("*-*-*.json")) if results else ():
        plan = json.loads(path.read_text())
        if plan["compiler"] != "TPU" or "memory" not in plan["train_step"]:
            continue
        memory = plan["train_step"]["memory"]
        cell = {
            "shape": path.stem.partition(f"-{plan['method']}-")[0],
            "method": plan["method"],
            "chip": plan["topology"].partition(":")[0],
            "layout": plan["layout"],
            "rows": plan["batch_size"],
            "remat_policy": plan["remat_policy"],
            "gib": round(memory["total"] / GIB, 1),
            "bytes": memory,
        }
        found[name_of(cell)] = found.get(name_of(cell), {}) | cell
    return list(found.values())


def name_of(cell: dict) -> str:
    layout = Layout(**cell["layout"]).describe()
    return f"{cell['shape']}, {cell['method']}, {cell['chip']}, {layout}"


def candidate(cell: dict, sizings: dict) -> Candidate:
    """Return the arithmetic's view of a cell."""
    t5 = dataclasses.replace(
        shape_named(cell["shape"]), dtype="bfloat16", remat_policy=cell["remat_policy"]
    )
    job = job_of_shape(
        t5, cell["method"], batch_size=cell["rows"], frozen_dtype="bfloat16", prng="rbg"
    )
    key, layout = (cell["shape"], cell["method"]), Layout(**cell["layout"])
    sizing = sizings.setdefault(key, Sizing(job))
    return Candidate(job, layout, estimate(job, sizing(layout), CHIPS[cell["chip"]], layout))


def by_kind(memory: dict[str, int]) -> dict[str, int]:
    """Return bytes by kind, of the compiler's record or the arithmetic's."""
    return {
        "arguments": sum(memory.get(kind, 0) for kind in (*ARGUMENTS, "padding")),
        "temporaries": memory["temporaries"],
        "outputs": memory.get("output", 0),
        "code": memory.get("code", 0),
    }


def compile_cells(folder: Path, text: str) -> None:
    """Compile the cells whose name has the text, where the folder has them not."""
    folder.mkdir(parents=True, exist_ok=True)
    sizings: dict = {}
    for cell in json.loads(CELLS.read_text()):
        key, way = (cell["shape"], cell["method"], cell["chip"]), candidate(cell, sizings)
        path = plan_table.result_file(folder, key, way)
        if text in name_of(cell) and not path.exists():
            plan_table.compile_one(key, way, path)


def store(found: list[dict]) -> None:
    rows = ",\n".join(f" {json.dumps(cell)}" for cell in found)
    with replacing(CELLS) as partial:
        partial.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="of plan_table.py")
    parser.add_argument("--compile", metavar="TEXT", help="cells to compile into FOLDER")
    parser.add_argument("--store", action="store_true", help="write plan_cells.json")
    options = parser.parse_args()
    if options.compile is not None:
        compile_cells(options.results, options.compile)
    found = cells(options.results)
    if options.store:
        store(found)
    sizings: dict = {}
    errors: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    unmarked, without = [], []
    for cell in found:
        name, memory = name_of(cell), candidate(cell, sizings).estimate.memory
        total = sum(memory.values())
        error = total / GIB / cell["gib"] - 1
        stage = STAGES[cell["method"]]
        errors["total", stage].append(error)
        text = f"{name}: {total / GIB:.1f} for {cell['gib']:.1f} GiB, {error:+.0%}"
        for kind, compiled in by_kind(cell["bytes"]).items() if "bytes" in cell else ():
            if kind in ("outputs", "code"):
                text += f"; {kind} {compiled / 2**20:.1f} MiB, not counted"
                continue
            errors[kind, stage].append(by_kind(memory)[kind] / compiled - 1)
            text += f"; {kind} {errors[kind, stage][-1]:+.0%}"
        if "bytes" not in cell:
            without.append(name)
        low = error < TOO_LOW
        print(text + "; too low" * low + "; says compile" * cell.get("compile", False))
        if low and not cell.get("compile"):
            unmarked.append(name)
    for (kind, stage), values in sorted(errors.items()):
        print(
            f"{kind}, {stage}: {min(values):+.0%} to {max(values):+.0%}, median "
            f"{statistics.median(values):+.0%}, {sum(x < TOO_LOW for x in values)} of "
            f"{len(values)} too low by more than 20 %"
        )
    print(f"total alone is known of: {'; '.join(without) or 'none'}")
    print(f"too low and not marked: {'; '.join(unmarked) or 'none'}")
    return 1 if unmarked else 0


if __name__ == "__main__":
    sys.exit(main())
