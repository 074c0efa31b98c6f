"""A sweep's tables as Markdown and as LaTeX: the same rows, columns and marks as on the page."""

from collections.abc import Sequence

from pemt_jax.sweeping.pages.numbers import Column, Entry, shown
from pemt_jax.sweeping.pages.results import Results, title_of

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
BEST, NOISE, MAJORITY = "best", "within the noise of the best", "majority class"


def markdown(results: Results) -> str:
    """The table of test metrics, with what has to be known to read it."""
    head = ["method", *map(column_name, results.columns)]
    lines = [f"**{_cell(results.title)}**", "", _row(head), _row(["---"] * len(head))]
    for method in results.methods:
        cells = [_number(results.entries.get((method, column))) for column in results.columns]
        lines.append(_row([title_of(method), *cells]))
    for name, values in results.published_rows():
        cells = [shown(value) for value in values]
        lines.append(_row([f"{name} (published)", *cells]))
    lines += ["", *(f"- {_cell(line)}" for line in notes(results)), ""]
    return "\n".join(lines)


def latex(results: Results) -> str:
    """The same as a tabular environment, which needs the package booktabs."""
    lines = [
        f"% {' '.join(results.title.split())}",
        rf"\begin{{tabular}}{{l{'r' * len(results.columns)}}}",
        r"\toprule",
        " & ".join(["method", *(_latex(column_name(c)) for c in results.columns)]) + r" \\",
        r"\midrule",
    ]
    for method in results.methods:
        cells = []
        for column in results.columns:
            entry = results.entries.get((method, column))
            text = _latex(_number(entry)).replace("±", r"$\pm$").replace("–", "--")
            text = text.replace("†", r"$^\dagger$").replace("‡", r"$^\ddagger$")
            text = text.replace("**", "")
            cells.append(rf"\textbf{{{text}}}" if entry and BEST in entry.marks else text)
        lines.append(" & ".join([_latex(title_of(method)), *cells]) + r" \\")
    if published := results.published_rows():
        lines.append(r"\midrule")
    for name, values in published:
        cells = [shown(value).replace("–", "--") for value in values]
        lines.append(" & ".join([_latex(f"{name} (published)"), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"% {line}" for line in notes(results)]
    return "\n".join(lines) + "\n"


def notes(results: Results, brackets: bool = True) -> list[str]:
    """What has to be known to read the table, a sentence per line.

    `brackets` is whether its cells have the standard deviations in brackets.
    """
    entries = [entry for entry in results.entries.values() if entry.values]
    sets = max((len(entry.sets) for entry in entries), default=0)
    seeds = max((entry.seeds for entry in entries), default=0)
    sizes = dict.fromkeys((entry.task, entry.examples) for entry in entries if entry.examples)
    of = ", ".join(f"{task} {examples:,}" for task, examples in sizes)
    spread = any((entry.within, entry.between) != (None, None) for entry in entries)
    inside = "; in brackets the standard deviation over seeds within a set, and of the sets' means"
    found = [
        f"Mean ± standard error on the test split; up to {sets} expert set{'s' * (sets != 1)} of "
        f"{seeds} seed{'s' * (seeds != 1)}{inside * (brackets and spread)}.",
        "Bold: the best. †: within the noise of the best (two standard errors). ‡: equal to the "
        "majority class, or not clearly above it.",
        "What is chosen (rates, experts) is chosen on validation; the test split was read for the "
        "chosen runs only.",
    ]
    if of:
        found.append(f"Test examples: {of}.")
    if failed := sum(row["state"] == "failed" for row in results.rows):
        found.append(f"Failed: {failed} of {len(results.rows)} runs.")
    if missing := sum(row["state"] == "waiting" for row in results.rows):
        found.append(f"Not trained or not tested yet: {missing} of {len(results.rows)} runs.")
    if results.published_rows():
        found.append(f"Published: {results.published.source}. {results.published.note}")
    return found


def column_name(column: Column) -> str:
    """A task with its number of shots, where it is not trained on all examples."""
    task, shots = column
    return task if shots in ("full", "any") else f"{task}, {shots} shots"


def at_chance(entry: Entry) -> bool:
    """Whether an entry is not clearly better than the majority class."""
    return any(MAJORITY in mark for mark in entry.marks)


def _number(entry: Entry | None) -> str:
    """A cell: mean ± error (within, between), with its marks."""
    if entry is None or entry.mean is None:
        return entry.label if entry else "–"
    text = entry.label
    if entry.error is not None:
        text += f" ± {entry.error:.2g}"
    spreads = [entry.within, entry.between]
    if any(spread is not None for spread in spreads):
        shown = ("–" if spread is None else f"{spread:.2g}" for spread in spreads)
        text += f" ({', '.join(shown)})"
    text += "†" * (NOISE in entry.marks) + "‡" * at_chance(entry)
    return f"**{text}**" if BEST in entry.marks else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    for mark in ("\\", "|", "_", "<", ">"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)
