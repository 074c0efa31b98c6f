"""One self-contained HTML page about a run, about several side by side, or about a sweep.

    python -m pemt_jax.report runs/amazon --to amazon.html
    python -m pemt_jax.report runs/demo --to demo.html --gates
    python -m pemt_jax.report runs/study --to study.html --markdown study.md --latex study.tex

The page has the metrics with their standard errors, learning curves, cost and configuration; runs
that differ only in their seed are one row. Of a single run it also has the gates per layer and
source, the examples with the most and least typical gates, and the correlations of the prompts,
for which the run is opened and examples are passed through it; --gates does so for several runs.
A sweep's page has its table with spreads and marks, costs, which source helps which target, and
what was chosen; --markdown and --latex write the table alone.
The exit code is 0, 1 when the page cannot be written, 2 for wrong use.
"""

import argparse
import sys
from collections.abc import Sequence

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser
from pemt_jax.common.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report that the command line asks for; return the exit code."""
    return exit_code_of(lambda: _report(argv))


def _report(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    from pemt_jax.reporting.page import write_report
    from pemt_jax.sweeping.pages.results import is_sweep

    tables = {"markdown": arguments.markdown, "latex": arguments.latex}
    if len(arguments.runs) == 1 and is_sweep(arguments.runs[0]):
        from pemt_jax.sweeping.pages.page import write_sweep_report

        found = write_sweep_report(arguments.runs[0], arguments.to, **tables)
        print(f"{arguments.runs[0]}: {len(found.rows)} runs")
        return
    if any(tables.values()) or arguments.to is None:
        raise UsageError("Of runs only a page is written, expected --to FILE.html and no table.")
    for module in arguments.modules:
        from pemt_jax.tasks.commands.preparing import import_tasks

        import_tasks(module)
    found = write_report(arguments.runs, arguments.to, gates=arguments.gates, split=arguments.split)
    print(f"{arguments.to}: {len(found)} run{'s' * (len(found) != 1)}")


def _parser() -> Parser:
    parser = Parser(prog="python -m pemt_jax.report", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a MODEL_DIR, a folder of runs or a sweep"
    )
    parser.add_argument("--to", metavar="FILE.html", help="the page to write")
    for form in ("markdown", "latex"):
        parser.add_argument(f"--{form}", metavar="FILE", help="the table of a sweep to write")
    parser.add_argument(
        "--gates",
        action=argparse.BooleanOptionalAction,
        help="whether to open the runs for gates and prompts (default: if there is one)",
    )
    parser.add_argument(
        "--split", help="of the gates' examples (default: validation, else test or train)"
    )
    parser.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module that registers the tasks of runs whose gates are shown",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
