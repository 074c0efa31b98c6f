"""The plan's arithmetic against the TPU's compiler, cell by cell, with the error by kind.

    python tests/benchmarks/plan_check.py                       # the cells of plan_cells.json
    python tests/benchmarks/plan_check.py --results FOLDER      # and those of plan_table.py

plan_cells.json has what the compiler said of training steps: of all cells that fit the total, in
GiB as the table of pemt_jax/planning/README.md has it; of those that were compiled again the bytes
by kind. Prints one line per cell, the errors by kind, and the cells in which the arithmetic is too
low by more than 20 %; exit code 1 if one of these is not marked `compile` there.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from pemt_jax.planning.arithmetic import estimate
from pemt_jax.planning.chips import CHIPS, GIB
from pemt_jax.planning.job import job_of_shape
from pemt_jax.planning.layout import Layout
from pemt_jax.planning.search import Sizing
from pemt_jax.planning.shapes import shape_named

CELLS = Path(__file__).with_name("plan_cells.json")
TOO_LOW = -0.20
KINDS = ("frozen", "trainable", "optimizer", "batch", "temporaries")


def cells(results: Path | None) -> Iterator[dict]:
    """Yield the cells: what was compiled, its GiB and, where they are known, the bytes by kind."""
    yield from json.loads(CELLS.read_text())
    for path in sorted(results.glob("*-*-*.json")) if results else ():
        plan = json.loads(path.read_text())
        if plan["compiler"] != "TPU" or "memory" not in plan["train_step"]:
            continue
        memory = plan["train_step"]["memory"]
        yield {
            "shape": path.stem.partition(f"-{plan['method']}-")[0],
            "method": plan["method"],
            "chip": plan["topology"].partition(":")[0],
            "layout": plan["layout"],
            "rows": plan["batch_size"],
            "remat_policy": plan["remat_policy"],
            "gib": memory["total"] / GIB,
            "bytes": memory,
        }


def estimated(cell: dict, sizings: dict) -> dict[str, int]:
    """Return the arithmetic's bytes by kind of a cell's train step."""
    t5 = dataclasses.replace(
        shape_named(cell["shape"]), dtype="bfloat16", remat_policy=cell["remat_policy"]
    )
    job = job_of_shape(
        t5, cell["method"], batch_size=cell["rows"], frozen_dtype="bfloat16", prng="rbg"
    )
    key, layout = (cell["shape"], cell["method"]), Layout(**cell["layout"])
    sizing = sizings.setdefault(key, Sizing(job))
    return estimate(job, sizing(layout), CHIPS[cell["chip"]], layout).memory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="of plan_table.py")
    sizings: dict = {}
    errors: dict[str, list[float]] = {kind: [] for kind in ("total", *KINDS)}
    unmarked = []
    for cell in cells(parser.parse_args().results):
        found = estimated(cell, sizings)
        error = sum(found.values()) / GIB / cell["gib"] - 1
        errors["total"].append(error)
        layout = Layout(**cell["layout"]).describe()
        name = f"{cell['shape']}, {cell['method']}, {cell['chip']}, {layout}"
        text = f"{name}: {sum(found.values()) / GIB:.1f} for {cell['gib']:.1f} GiB, {error:+.0%}"
        for kind in KINDS if "bytes" in cell else ():
            if cell["bytes"][kind] > 2**20:
                errors[kind].append(found[kind] / cell["bytes"][kind] - 1)
                text += f"; {kind} {errors[kind][-1]:+.0%}"
        low = error < TOO_LOW
        print(text + "; too low" * low + "; says compile" * cell.get("compile", False))
        if low and not cell.get("compile"):
            unmarked.append(name)
    for kind, values in errors.items():
        if values:
            print(
                f"{kind}: {min(values):+.0%} to {max(values):+.0%}, median "
                f"{statistics.median(values):+.0%}, {sum(x < TOO_LOW for x in values)} of "
                f"{len(values)} too low by more than 20 %"
            )
    print(f"too low and not marked: {', '.join(unmarked) or 'none'}")
    return 1 if unmarked else 0


if __name__ == "__main__":
    sys.exit(main())
