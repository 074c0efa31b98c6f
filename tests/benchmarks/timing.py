"""Timing shared by the benchmarks: interleaved repeats in one process, and rows of a report.

A machine's speed drifts, so what is compared is run in turn, A B A B ..., and a ratio is given
twice: of the medians, and of the minima, which other load disturbs least.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as launch/environment.sh has it


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, settle: int = 0
) -> dict[str, list[float]]:
    """Return {name: seconds of each repeat}; each call must wait for its own result.

    What takes very different amounts of memory leaves its successor another heap: `settle` calls
    of its own, which are not timed, then come before each one that is.
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
    """min, median and spread, (max - min) / median, of repeats."""
    median = statistics.median(values)
    return {
        "min": min(values),
        "median": median,
        "repeats": len(values),
        "spread": (max(values) - min(values)) / median,
    }


def compare(seconds: Mapping[str, list[float]], numerator: str, denominator: str) -> dict:
    """Return the ratio of medians and of minima, with the summaries of both sides."""
    above, below = summary(seconds[numerator]), summary(seconds[denominator])
    return {
        "ratio_of_medians": above["median"] / below["median"],
        "ratio_of_minima": above["min"] / below["min"],
        "seconds": {numerator: above, denominator: below},
    }


def row(value: float | None, target: float | None, at_least: bool = False, **details) -> dict:
    """Return a row of the report; `ok` is None where nothing was measured or nothing is asked.

    Args:
      value: what was measured.
      target: what it is to reach; None for what is only reported.
      at_least: whether more is better.
      details: what stands behind the value, for RESULTS.md.
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
      measure: what to run.
      options: a parser of the script's own options, already read, for --help.
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
    """One row as a line of text."""
    value, target = measured["value"], measured["target"]
    text = f"{name}: {'not measured' if value is None else f'{value:.3g}'}"
    if target is not None:
        text += f" (target {'>=' if measured['at_least'] else '<='} {target:g})"
    return text + {True: ", reached", False: ", MISSED", None: ""}[measured["ok"]]
