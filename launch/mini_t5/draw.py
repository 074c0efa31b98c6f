"""Draws what a mini T5 learned: `python launch/mini_t5/draw.py curves.svg DISTILLED DECODER`.

Left the cosine of student and teacher in DISTILLED/metrics.jsonl, of the batch and on held-out
sentences; right the loss per token in DECODER/metrics.jsonl, of the batch and on held-out
paragraphs under span corruption.
"""

import argparse
import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def curve(folder: Path, kind: str, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric in the log of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("kind") == kind and metric in row]
    return [row["step"] for row in rows], [row[metric] for row in rows]


def draw(file: Path, distilled: Path, decoder: Path) -> None:
    """Write the picture, as SVG with text that stays text."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mini_t5"})
    canvas = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, title, folder, curves in (
        (
            canvas.add_subplot(1, 2, 1),
            "cosine of student and teacher",
            distilled,
            {"batch": ("train", "cosine"), "held out": ("validation", "cosine")},
        ),
        (
            canvas.add_subplot(1, 2, 2),
            "decoder: nats per token",
            decoder,
            {"batch": ("train", "loss"), "held out": ("validation", "cross_entropy")},
        ),
    ):
        for name, (kind, metric) in curves.items():
            axes.plot(*curve(folder, kind, metric), label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.2)
        axes.legend()
    canvas.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("file", "distilled", "decoder"):
        parser.add_argument(name, type=Path)
    draw(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
