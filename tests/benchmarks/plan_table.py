"""The README's table of the smallest slice on which each T5 is trained, and its check.

    python tests/benchmarks/plan_table.py --results FOLDER              # the table, by arithmetic
    python tests/benchmarks/plan_table.py --results FOLDER --compile    # and by the TPU's compiler

--compile runs `python -m pemt_jax.plan` for one cell after another: the smallest slice that fits by
arithmetic and the one below it, minutes each. What lies in FOLDER is not compiled again, so that
the same command goes on. The table marks a cell that the compiler confirms with `c`, one that it
refutes with `x`, and the last line tells how far the arithmetic is from the compiler.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from pemt_jax.planning.chips import CHIPS, GIB
from pemt_jax.planning.job import job_of_shape
from pemt_jax.planning.layout import Layout
from pemt_jax.planning.search import Sizing, candidates
from pemt_jax.planning.shapes import shape_named
from pemt_jax.weights import replacing

SHAPES = ("base", "large", "3B", "11B", "1.1-XL", "1.1-XXL")
METHODS = {"pemt_source": 128, "pemt_target": 32, "full": 32}  # rows an update, as in runs/*.gin
CHIP_COUNTS = (1, 4, 8, 16, 32, 64, 128, 256)
COMPILED = [*((shape, "v5e") for shape in ("base", "3B", "11B")),
            *((shape, chip) for chip in ("v4", "v5p") for shape in ("base", "11B"))]


def cells() -> dict[tuple[str, str, str], list]:
    """(shape, method, chip): the way that takes least, by number of chips, to one that fits."""
    found = {}
    for shape in SHAPES:
        for method, rows in METHODS.items():
            t5 = dataclasses.replace(shape_named(shape), dtype="bfloat16",
                                     broadcast_dropout=True)
            job = job_of_shape(t5, method, batch_size=rows, frozen_dtype="bfloat16", prng="rbg")
            sizing = Sizing(job)
            for chip in ("v4", "v5e", "v5p"):
                ways = []
                for chips in CHIP_COUNTS:
                    tried = candidates(job, CHIPS[chip], chips, sizing, ("bfloat16",), (rows,))
                    ways.append(min((way for way in tried if way.layout.expert == 1),
                                    key=lambda way: way.estimate.total))
                    if ways[-1].fits(CHIPS[chip]):
                        break
                found[shape, method, chip] = ways
    return found


def result_file(folder: Path, cell, way) -> Path:
    return folder / f"{'-'.join(cell)}-{mesh_of(way.layout)}-{way.job.t5.remat_policy}.json"


def mesh_of(layout: Layout) -> str:
    """The layout in a word, data x model: "2x4", or "2x4s" fully sharded."""
    return f"{layout.data}x{layout.model}" + "s" * layout.fully_sharded


def compile_cells(found, folder: Path, chips) -> None:
    """Compile what COMPILED asks for, the quickest first; a failure is told and passed over."""
    todo = [(cell, way) for cell, ways in found.items()
            if (cell[0], cell[2]) in COMPILED and cell[2] in chips for way in ways[-2:]]
    todo.sort(key=lambda pair: (SHAPES.index(pair[0][0]), pair[0][2] != "v5e"))
    for cell, way in todo:
        path = result_file(folder, cell, way)
        if path.exists():
            continue
        shape, method, chip = cell
        done = subprocess.run([
            sys.executable, "-m", "pemt_jax.plan", "--shape", shape, "--method", method,
            "--topology", CHIPS[chip].slice_of(way.layout.chips), "--no_decode",
            "--model_parallel", str(way.layout.model),
            *["--fully_sharded"] * way.layout.fully_sharded,
            "--batch_size", str(way.job.batch_size),
            "--dtype", "bfloat16", "--frozen_dtype", "bfloat16", "--prng", "rbg",
            "--remat_policy", way.job.t5.remat_policy, "--broadcast_dropout", "--json", str(path),
        ], stdout=subprocess.DEVNULL)  # fmt: skip
        print(path.name, {0: "fits", 3: "does not fit"}.get(done.returncode, "failed"), flush=True)


def table(found, folder: Path) -> str:
    """The table as Markdown."""
    lines = ["| T5, method | v4 | v5e | v5p |", "|---|---|---|---|"]
    errors = []
    for shape in SHAPES:
        for method in METHODS:
            row = []
            for chip in ("v4", "v5e", "v5p"):
                ways, said = found[shape, method, chip], []
                for way in ways[-2:]:
                    path = result_file(folder, (shape, method, chip), way)
                    if not path.exists():
                        said.append("")
                        continue
                    plan = json.loads(path.read_text())
                    said.append(" c" if plan["fits"] == way.fits(CHIPS[chip]) else " x")
                    step = plan["train_step"]
                    if plan["compiler"] == "TPU" and "memory" in step:
                        errors.append(way.estimate.total / step["memory"]["total"] - 1)
                way = ways[-1]
                text = f"{way.layout.chips} ({mesh_of(way.layout)}, " \
                       f"{way.estimate.total / GIB:.1f} GiB){said[-1]}"  # fmt: skip
                if not way.fits(CHIPS[chip]):
                    text = f"more than {CHIP_COUNTS[-1]}"
                if said[:-1] != [""] * len(said[:-1]):
                    text += f"; not {ways[-2].layout.chips}{said[0]}"
                row.append(text)
            lines.append(f"| {shape}, {method} | {' | '.join(row)} |")
    if errors:
        lines.append(f"\nArithmetic against the compiler, memory a chip, {len(errors)} cells: "
                     f"{min(errors):+.0%} to {max(errors):+.0%}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--compile", nargs="*", metavar="CHIP",
                        help="compile the cells of these chips; of all when none is named")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    found = cells()
    if options.compile is not None:
        compile_cells(found, options.results, options.compile or CHIPS)
    text = table(found, options.results)
    with replacing(options.results / "table.md") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
