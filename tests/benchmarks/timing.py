"""Timing shared by the benchmarks: interleaved repeats in one process, and rows of a report.

The speed of a machine drifts, so the things compared run in turn, A B A B ... Ratios are given of
the medians and of the minima, which other load on the machine affects least.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as in launch/environment.sh


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, settle: int = 0
) -> dict[str, list[float]]:
    """Return {name: seconds of each repeat}; each call must wait for its own result.

    Functions that use very different amounts of memory change the heap for their successor. Then
    `settle` further calls, which are not timed, precede each timed one.
    """
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            for _ in range(settle):
                run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    """Return minimum, median and spread, which is (max - min) / median, of repeats."""
    median = statistics.median(values)
    return {
        "min": min(values),
        "median": median,
        "repeats": len(values),
        "spread": (max(values) - min(values)) / median,
    }


def compare(seconds: Mapping[str, list[float]], numerator: str, denominator: str) -> dict:
    """Return the ratios of medians and of minima, and the summaries of both sides."""
    above, below = summary(seconds[numerator]), summary(seconds[denominator])
    return {
        "ratio_of_medians": above["median"] / below["median"],
        "ratio_of_minima": above["min"] / below["min"],
        "seconds": {numerator: above, denominator: below},
    }


def row(value: float | None, target: float | None, at_least: bool = False, **details) -> dict:
    """Return a row of the report; `ok` is None without a value or a target.

    Args:
      value: the measured value; None if it could not be measured.
      target: the value to reach; None if the row is for information only.
      at_least: whether `target` is a lower bound.
      details: the numbers behind the value, for RESULTS.md.
    """
    ok = None
    if value is not None and target is not None:
        ok = bool(value >= target if at_least else value <= target)
    return {"value": value, "target": target, "at_least": at_least, "ok": ok, "details": details}


def main(
    doc: str, measure: Callable[[], dict], options: argparse.ArgumentParser | None = None
) -> None:
    """Run a script's `measure() -> {row name: row}` and print it; --json prints one object.

    Args:
      doc: the script's docstring, for --help.
      measure: the function to run.
      options: the parser of the script's own options, for --help; it has been used already.
    """
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0], parents=[options] if options else []
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    found = measure()
    if as_json:
        print(json.dumps(found))
        return
    for name, measured in found.items():
        print(line(name, measured))
        print(json.dumps(measured["details"], indent=2))


def line(name: str, measured: Mapping) -> str:
    """Return a row as a line of text."""
    value, target = measured["value"], measured["target"]
    text = f"{name}: {'not measured' if value is None else f'{value:.3g}'}"
    if target is not None:
        text += f" (target {'>=' if measured['at_least'] else '<='} {target:g})"
    return text + {True: ", reached", False: ", MISSED", None: ""}[measured["ok"]]
