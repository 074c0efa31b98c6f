"""The page: what the other modules found, put into templates/page.html by jinja2.

Everything that comes from a run is text and is escaped; only the figures, which are ours, are not.
The page needs no network and no script: its Content-Security-Policy forbids both.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.versions import VERSION
from pemt_jax.common.writing.output import check_output, output
from pemt_jax.finished_config import FinishedConfig
from pemt_jax.reporting.figures import learning_curves
from pemt_jax.reporting.heats import Heat, gate_heats
from pemt_jax.reporting.records import FINISHED, RunRecord, find_runs
from pemt_jax.reporting.scores import OWN, SEED, Group, group_runs, scores_of

TYPICAL = 5  # examples with the most typical gates, and with the least
TEXT = 300  # characters of an example that are shown
PATHS = {"library", "initial_checkpoint_path"}  # settings that say where things are on a machine


def write_report(
    runs: Iterable[str | os.PathLike],
    to: str | os.PathLike,
    *,
    gates: bool | None = None,
    split: str | None = None,
) -> list[RunRecord]:
    """Write one self-contained HTML page about runs; return what was found of them.

    Args:
      runs: MODEL_DIRs, or folders that hold some.
      to: the HTML file, replaced if it exists.
      gates: whether finished runs are opened for their gates and prompts, a forward pass each;
        None for yes if there is one run.
      split: whose examples the gates are shown for; None for validation, else test or train.

    Raises:
      UsageError: a place holds no run, `to` is no .html file, or a task has no such split.
      PemtError: it cannot be written.
    """
    if not os.fspath(to).endswith((".html", ".htm")):
        raise UsageError(
            f"{os.fspath(to)!r} is no name of a page, expected one that ends in .html."
        )
    check_output("--to", os.fspath(to))
    found = find_runs([os.fspath(run) for run in runs])
    opened = []
    if gates or (gates is None and len(found) == 1):
        opened = [gate_section(run, split) for run in found if run.experts]
    with output("--to", os.fspath(to)) as file:
        file.write(render(found, opened))
    return found


def render(runs: Sequence[RunRecord], gates: Sequence[dict] = ()) -> str:
    """Return the page."""
    groups = group_runs(runs)
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    return template("page.html").render(
        title=title,
        runs=runs,
        finished=sum(run.state == FINISHED for run in runs),
        groups=groups,
        scores=scores_of(groups),
        figures=learning_curves(groups),
        gates=gates,
        mixing=any(run.experts for run in runs),
        settings=settings(groups),
        cards=cards(runs),
        version=VERSION,
    )


def template(name: str):
    """A template of the pages, with the filters that write numbers."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pemt_jax.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "count": count, "size": size, "short": short}
    return environment.get_template(name)


def gate_section(record: RunRecord, split: str | None) -> dict[str, Any]:
    """What the page shows of a run's gates and prompts; a sentence where it cannot be opened."""
    from pemt_jax.reporting.gates import prompt_cosines, read_gates  # brings TensorFlow
    from pemt_jax.runs.finished import open_run
    from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

    section: dict[str, Any] = {"run": record, "fault": "", "heats": [], "prompts": None}
    try:
        run = open_run(FinishedConfig(str(record.folder)), DEFAULT_VOCABULARY)
        names, cosines = prompt_cosines(run)
        rows = list(zip(names, cosines.tolist(), strict=True))
        section["prompts"] = Heat("Cosines between mean prompt vectors", "task", names, rows, 1.0)
        found = read_gates(run, split)
    except PemtError as error:
        if split is not None and isinstance(error, UsageError):
            raise  # the split that was asked for is wrong
        return section | {"fault": str(error)}
    mean_LE = found.gate_NLE.mean(axis=0)
    layers = dict(zip(found.layers, mean_LE.tolist(), strict=True))
    section["heats"] = gate_heats(layers, found.sources)
    order = np.argsort(found.distances, kind="stable")
    ends = {"most": order[:TYPICAL], "least": order[::-1][: min(TYPICAL, len(order) - TYPICAL)]}
    for name, chosen in ends.items():
        section[name] = [
            {
                "input": found.inputs[i],
                "target": found.targets[i],
                "distance": float(found.distances[i]),
                "gate": found.gate_NLE[i].mean(axis=0).tolist(),
            }
            for i in chosen
        ]
    return section | {"found": found}


def settings(groups: Sequence[Group]) -> dict[str, Any]:
    """{"same": {name: value}, "other": {name: [value of each group]}} of the groups' settings."""
    names = dict.fromkeys(name for group in groups for name in group.first.settings)
    by_name = {
        name: [_setting(name, group.first.settings.get(name, "–")) for group in groups]
        for name in names
        if name not in OWN
    }
    same = {name: values[0] for name, values in by_name.items() if len(set(values)) == 1}
    return {"same": same, "other": {k: v for k, v in by_name.items() if k not in same}}


def cards(runs: Sequence[RunRecord]) -> list[dict[str, object]]:
    """What the cards of runs say, equal ones once."""
    found: dict[tuple, dict[str, object]] = {}
    for run in runs:
        if run.card is None:
            continue
        facts: dict[str, object] = {
            "base": f"{run.card.base_name} {run.card.base_fingerprint[:12]}".strip(),
            "experts": ", ".join(f"{name} {sha256[:12]}" for name, sha256 in run.card.experts),
            "prompt": run.card.description,
            "versions": ", ".join(f"{name} {value}" for name, value in run.card.versions.items()),
        }
        entry = found.setdefault(tuple(facts.values()), facts | {"runs": []})
        names = entry["runs"]
        assert isinstance(names, list)
        names.append(run.name)
    return list(found.values())


def _setting(name: str, value: str) -> str:
    """A setting without its seed, and a path without the folders of the machine."""
    value = SEED.sub("", value)
    if name in PATHS and value.count("/") > 2:
        value = f"…/{'/'.join(value.split('/')[-2:])}"
    return value


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, a dash for none."""
    return "–" if value is None else f"{value:.{digits}g}"


def count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return "–"
    amount, units = float(value), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    with contextlib.suppress(StopIteration):
        while amount >= 1000:
            unit, amount = next(units), amount / 1000
    return f"{amount:.3g} {unit}"


def short(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]}…"
