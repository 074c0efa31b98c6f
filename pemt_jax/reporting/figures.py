"""Learning curves as inline SVG, drawn by matplotlib; colours of text and frame are the page's.

Text stays text (`svg.fonttype` none), so a figure is small and its words can be found. matplotlib
writes the same names into every figure, so each figure's get a prefix of their own.
"""

import dataclasses
import io
import re
import statistics
from collections.abc import Sequence
from typing import Any

from pemt_jax.reporting.scores import Group, metric_names

# Okabe and Ito's colours, which people with any colour vision can tell apart, those that show on
# white and on black; the style of the line differs as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = ("solid", "dashed", "dotted")
LINES = 12  # groups in a figure; more could not be told apart
POINTS = 100  # of a line
NUMBERS = 8  # of a line in the table that says the same
INK = "#123456"  # stands for the page's own colour of text
Point = tuple[int, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """A group's curves, one per seed, and how they are drawn."""

    name: str
    curves: Sequence[Sequence[Point]]
    colour: str
    style: str

    @property
    def mean(self) -> list[Point]:
        """Over seeds, at the steps that all have."""
        values = [dict(curve) for curve in self.curves]
        shared = sorted(set.intersection(*map(set, values)))
        return [(step, statistics.fmean(one[step] for one in values)) for step in shared]

    @property
    def ranges(self) -> list[tuple[float, float]]:
        """The lowest and highest of the curves at each step of the mean."""
        values = [dict(curve) for curve in self.curves]
        every = ([one[step] for one in values] for step, _ in self.mean)
        return [(min(found), max(found)) for found in every]

    @property
    def numbers(self) -> list[tuple[int, float, float, float]]:
        """Step, mean, lowest and highest of a few steps, the last among them."""
        mean = self.mean
        found = dict(zip([step for step, _ in mean], self.ranges, strict=True))
        return [(step, value, *found[step]) for step, value in thinned(mean, NUMBERS)]


@dataclasses.dataclass(frozen=True)
class Figure:
    """Curves over steps.

    Attributes:
      svg: the picture, an <svg> element; its title and description are the page's.
      left_out: how many groups are not in it.
      of: what each line is of.
      ranges: whether a band from the lowest to the highest is drawn in place of each curve.
    """

    key: str
    title: str
    lines: Sequence[Line]
    left_out: int
    svg: str
    of: str = "run"
    ranges: bool = False


def learning_curves(groups: Sequence[Group]) -> list[Figure]:
    """Training loss and validation metric by step, of the LINES groups with the best of the latter.

    Without a validation metric the order of the groups decides.
    """
    shown = sorted(range(len(groups)), key=lambda i: -_final(groups[i]))[:LINES]
    chosen = [groups[i] for i in sorted(shown)]
    figures = []
    for key, title, kind in (
        ("loss", "Training loss", "train"),
        ("validation", "Validation metric", "validation"),
    ):
        lines = []
        for i, group in enumerate(chosen):
            curves = [run.curve(kind, metric_of(run.rows, kind)) for run in group.runs]
            curves = [thinned(curve, POINTS) for curve in curves if curve]
            style = STYLES[i // len(COLOURS) % len(STYLES)]
            if curves:
                lines.append(Line(group.name, curves, COLOURS[i % len(COLOURS)], style))
        if lines:
            left_out = len(groups) - len(chosen)
            figures.append(Figure(key, title, lines, left_out, draw(key, title, lines)))
    return figures


def draw(key: str, label: str, lines: Sequence[Line], ranges: bool = False) -> str:
    """Return an <svg> of lines over steps, as wide as its place on the page.

    Args:
      key: prefix of the names in it.
      label: of the vertical axis.
      lines: their curves are drawn thin, their means thick; a single curve is its mean.
      ranges: draw a band from the lowest to the highest in place of the curves.
    """
    import matplotlib  # half a second, which a command that draws nothing does not need
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False}
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=(4.6, 2.9), layout="constrained")
        axes = canvas.add_subplot()
        for line in lines:
            seeds = [(curve, 0.7, 0.5) for curve in line.curves if len(line.curves) > 1]
            if ranges and seeds:
                steps = [step for step, _ in line.mean]
                low, high = zip(*line.ranges, strict=True)
                axes.fill_between(steps, low, high, color=line.colour, alpha=0.15, lw=0)
                seeds = []
            for curve, width, alpha in (*seeds, (line.mean, 1.6, 1.0)):
                steps, values = [step for step, _ in curve], [value for _, value in curve]
                (drawn,) = axes.plot(steps, values, color=line.colour, lw=width, alpha=alpha)
                drawn.set(linestyle=line.style)
                if len(curve) < 8:
                    drawn.set(marker="o", markersize=2 * width)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel(label.lower(), color=INK)
        axes.tick_params(colors=INK)
        axes.grid(True, color=INK, alpha=0.15, lw=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
        axes.patch.set_visible(False)
        canvas.patch.set_visible(False)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(file, format="svg", metadata=nothing)
    return _for_page(file.getvalue(), key)


def thinned(curve: Sequence[Point], count: int) -> list[Point]:
    """At most `count` points of a curve, evenly spaced, the last among them."""
    every = max(1, -(-len(curve) // count))
    return list(curve[::-1][::every][::-1])


def _for_page(svg: str, key: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = svg.replace(INK, "currentColor").replace("*{", "svg *{")
    # The page names the figure, and its style gives it the width of its place.
    svg = re.sub(
        r'<svg height="[^"]*"|<svg', '<svg aria-hidden="true" focusable="false"', svg, count=1
    )
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)


def metric_of(rows: Sequence, kind: str) -> str:
    """The loss, or of validation the metric that chooses the best checkpoint."""
    if kind == "train":
        return "loss"
    names = {name for row in rows if row.get("kind") == kind for name in row}
    names -= {"step", "kind", "time"}
    return "average" if "average" in names else next(iter(metric_names(sorted(names))), "loss")


def _final(group: Group) -> float:
    """The validation metric that ranks a group; none is last."""
    metrics = group.first.metrics
    return metrics.get("average", float("-inf")) if metrics else float("-inf")
