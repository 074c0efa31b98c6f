"""Try bad inputs: the table of what was tried and what ended as promised, and each failure.

    python tests/fuzz/run.py                            # all, in minutes
    python tests/fuzz/run.py --only cards --only rows   # some categories
    python tests/fuzz/run.py --case "seed"              # those whose name has this text
    python tests/fuzz/run.py --sample                   # the sample that every test run tries
    python tests/fuzz/run.py --json found.json          # for programs

The exit code is 1 when something is not as promised. README.md says what that is.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "faults"), str(FOLDER.parent)]

from cases import CATEGORIES, PLANTED, all_cases  # noqa: E402


def main() -> int:
    arguments = _parser().parse_args()
    categories = arguments.only or list(CATEGORIES)
    chosen = [
        case
        for case in all_cases([*categories, *[PLANTED] * arguments.planted])
        if arguments.case in case.name and (case.quick or not arguments.sample)
    ]
    from driver import Driver  # imports the whole system

    tried, kept, failures, start = Counter(), Counter(), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as name:
        for result in Driver(Path(name), arguments.jobs).run(chosen):
            case, outcome = result.case, result.outcome
            tried[case.category] += 1
            kept[case.category] += not result.faults
            if result.faults:
                failures.append(result)
                print(f"\n{case.category}: {case.name}: {'; '.join(result.faults)}")
                print(f"  pemt-jax {shlex.join(case.argv)[:300]}")
                print(f"  code {outcome.code}: {(outcome.err or outcome.out)[-1200:].strip()}")
            elif arguments.verbose:
                print(f"{case.category}: {case.name}: {outcome.err.strip() or 'accepted'}")
            if sys.stderr.isatty() or not sum(tried.values()) % 50:
                seconds = time.monotonic() - start
                print(f"{sum(tried.values())}/{len(chosen)} in {seconds:.0f} s", file=sys.stderr)
            sys.stdout.flush()
    print("\n| category | tried | as promised |\n|---|---|---|")
    for category in tried:
        print(f"| {category} | {tried[category]} | {kept[category]} |")
    total, good = sum(tried.values()), sum(kept.values())
    print(f"| all | {total} | {good} ({good / max(total, 1):.1%}) |")
    if arguments.json:
        found = {
            "tried": dict(tried),
            "failures": [
                {"category": r.case.category, "name": r.case.name, "faults": r.faults}
                for r in failures
            ],
        }
        Path(arguments.json).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return bool(failures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=CATEGORIES)
    parser.add_argument("--case", default="", help="only cases whose name has this text")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--planted", action="store_true", help="broken promises too, to be found")
    parser.add_argument("--json", metavar="FILE", help="write what was found to this file")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="print every sentence")
    return parser


if __name__ == "__main__":
    sys.exit(main())
