"""The table of the smallest slices on which each T5 can be trained, and its check by compilation.

    python tests/benchmarks/plan_table.py --results FOLDER              # estimates
    python tests/benchmarks/plan_table.py --results FOLDER --compile    # the TPU's compiler too

--compile runs `python -m pemt_jax.plan` for one cell after another, minutes each: for the smallest
slice that fits and the next smaller one and, if the compiler contradicts the estimate, for further
slices until it has confirmed both. Results in FOLDER are not compiled again, so the same command
continues an interrupted one. The table marks compiled results with `c`; the lines below it compare
estimates with compiled results.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from pemt_jax.common.storage import replacing
from pemt_jax.planning.chips import CHIPS, GIB
from pemt_jax.planning.job import job_of_shape
from pemt_jax.planning.layout import Layout
from pemt_jax.planning.search import Sizing, candidates
from pemt_jax.planning.shapes import shape_named

SHAPES = ("base", "large", "3B", "11B", "1.1-XL", "1.1-XXL")
METHODS = {"pemt_source": 128, "pemt_target": 32, "full": 32}  # examples per step, see runs/*.gin
CHIP_COUNTS = (1, 4, 8, 16, 32, 64, 128, 256)
COMPILED = [
    *((shape, "v5e") for shape in ("base", "3B", "11B")),
    *((shape, chip) for chip in ("v4", "v5p") for shape in ("base", "11B")),
]


def cells() -> dict[tuple[str, str, str], list]:
    """Return {(shape, method, chip): for each slice the layout with the least estimated memory}."""
    found = {}
    for shape in SHAPES:
        for method, rows in METHODS.items():
            t5 = dataclasses.replace(shape_named(shape), dtype="bfloat16")
            job = job_of_shape(t5, method, batch_size=rows, frozen_dtype="bfloat16", prng="rbg")
            sizing = Sizing(job)
            for chip in ("v4", "v5e", "v5p"):
                ways = []
                for chips in CHIP_COUNTS:
                    tried = candidates(job, CHIPS[chip], chips, sizing, ("bfloat16",), (rows,))
                    ways.append(
                        min(
                            (way for way in tried if way.layout.expert == 1),
                            key=lambda way: way.estimate.total,
                        )
                    )
                found[shape, method, chip] = ways
    return found


def result_file(folder: Path, cell, way) -> Path:
    return folder / f"{'-'.join(cell)}-{mesh_of(way.layout)}-{way.job.t5.remat_policy}.json"


def mesh_of(layout: Layout) -> str:
    """Return a layout as text, data x model: "2x4", or "2x4s" if fully sharded."""
    return f"{layout.data}x{layout.model}" + "s" * layout.fully_sharded


def compiled(folder: Path, cell, way) -> dict | None:
    """Return the compiled result for this layout, if there is one."""
    path = result_file(folder, cell, way)
    return json.loads(path.read_text()) if path.exists() else None


def smallest(found, folder: Path, cell) -> int | None:
    """Return the index of the smallest slice that fits, or None.

    Compiled results take precedence over estimates.
    """
    for index, way in enumerate(found[cell]):
        said = compiled(folder, cell, way)
        if said["fits"] if said else way.fits(CHIPS[cell[2]]):
            return index
    return None


def compile_cells(found, folder: Path, chips) -> None:
    """Compile the cells of COMPILED, the fastest first; a failure is printed and skipped."""
    wanted = [cell for cell in found if (cell[0], cell[2]) in COMPILED and cell[2] in chips]
    for cell in sorted(wanted, key=lambda cell: (SHAPES.index(cell[0]), cell[2] != "v5e")):
        tried = []
        while True:
            index = smallest(found, folder, cell)
            index = len(found[cell]) - 1 if index is None else index
            around = found[cell][max(index - 1, 0) : index + 1]
            open_ways = [
                way for way in around if way not in tried and not compiled(folder, cell, way)
            ]
            if not open_ways:
                break
            tried.append(open_ways[-1])
            compile_one(cell, open_ways[-1], result_file(folder, cell, open_ways[-1]))


def compile_one(cell, way, path: Path) -> None:
    """Compile for the TPU and store the result in the file."""
    shape, method, chip = cell
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pemt_jax.plan",
            "--shape",
            shape,
            "--method",
            method,
            "--topology",
            CHIPS[chip].slice_of(way.layout.chips),
            "--no_evaluation",
            "--model_parallel",
            str(way.layout.model),
            *["--fully_sharded"] * way.layout.fully_sharded,
            "--batch_size",
            str(way.job.batch_size),
            "--dtype",
            "bfloat16",
            "--frozen_dtype",
            "bfloat16",
            "--prng",
            "rbg",
            "--remat_policy",
            way.job.t5.remat_policy,
            "--json",
            str(path),
        ],
        stdout=subprocess.DEVNULL,
    )
    print(path.name, {0: "fits", 3: "does not fit"}.get(done.returncode, "failed"), flush=True)


def table(found, folder: Path) -> str:
    """Return the table as Markdown."""
    lines = ["| T5, method | v4 | v5e | v5p |", "|---|---|---|---|"]
    for shape in SHAPES:
        for method in METHODS:
            row = [text_of(found, folder, (shape, method, chip)) for chip in ("v4", "v5e", "v5p")]
            lines.append(f"| {shape}, {method} | {' | '.join(row)} |")
    return "\n".join([*lines, "", *deviations(found, folder)])


def text_of(found, folder: Path, cell) -> str:
    """Return a cell of the table: chips, layout, memory per chip, and whether it was compiled."""
    index, ways = smallest(found, folder, cell), found[cell]
    if index is None:
        return f"more than {CHIP_COUNTS[-1]}"
    way, said = ways[index], compiled(folder, cell, ways[index])
    total = said["train_step"]["memory"]["total"] if said else way.estimate.total
    text = f"{way.layout.chips} ({mesh_of(way.layout)}, {total / GIB:.1f} GiB)" + " c" * bool(said)
    text += ", compile" * (not said and way.is_close(CHIPS[cell[2]]))
    if index and compiled(folder, cell, ways[index - 1]):
        text += f"; not {ways[index - 1].layout.chips} c"
    return text


def deviations(found, folder: Path) -> list[str]:
    """Return a comparison of estimates with compiled results, for steps that fit and others."""
    fitting, others, refuted = [], [], 0
    for cell, ways in found.items():
        for way in ways:
            said = compiled(folder, cell, way)
            if not said or said["compiler"] != "TPU":
                continue
            refuted += said["fits"] != way.fits(CHIPS[cell[2]])
            step = said["train_step"]
            total = step["memory"]["total"] if "memory" in step else step["out_of_memory"]
            (fitting if said["fits"] else others).append(way.estimate.train / total - 1)
    return [
        f"Estimated over compiled memory per chip, {len(errors)} cells that {what}: "
        f"{min(errors):+.0%} to {max(errors):+.0%}, median {statistics.median(errors):+.0%}."
        for what, errors in (("fit", fitting), ("do not fit", others))
        if errors
    ] + [
        f"Estimate and compiler agree on whether the step fits in "
        f"{len(fitting + others) - refuted} of {len(fitting + others)} cells."
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--compile",
        nargs="*",
        metavar="CHIP",
        help="compile the cells of these chips; of all chips if none is named",
    )
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
