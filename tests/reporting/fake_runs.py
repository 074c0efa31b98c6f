"""Folders as runs leave them, without the training; and what a reader of a page finds."""

import json
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from pemt_jax.library.artefact import Card, write_artefact


def fake_run(
    folder: Path,
    accuracy: float = 70.0,
    seed: int = 0,
    method: str = "pemt_target",
    task: str = "shop",
    settings: Mapping[str, object] | None = None,
    test: float | None = None,
    facts: Mapping | None = None,
    notes: Mapping | None = None,
    description: str = "Say the mood.",
    finished: bool = True,
) -> Path:
    """Write a run's folder; `test` is its accuracy on the task's test split, with `facts`."""
    folder.mkdir(parents=True)
    metrics = {"accuracy": accuracy, "average": accuracy, "loss": 1.0}
    values = {"model_dir": str(folder), "seed": seed, "mixture_or_task_name": task}
    values |= {"method": method, **(settings or {})}
    lines = [f"train.train.{name} = {value!r}\n" for name, value in values.items()]
    text = f"import my_tasks\n\n# Macros:\nSTEPS = \\\n    30\n\n# Parameters:\n{''.join(lines)}"
    (folder / "config.gin").write_text(text + "train.train.train_steps = %STEPS\n\n# End\n")
    rows = [
        {"step": step, "kind": "train", "time": 1000.0 + step, "loss": 3 - step / 20}
        for step in range(2, 31, 2)
    ]
    rows += [{"step": step, "kind": "validation", "time": 1000, **metrics} for step in (15, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        arrays = {"prompt/embedding": np.zeros((4, 6), np.float32)}
        config = {"seed": seed, **(notes or {})}
        experts = (("films", "c" * 64),) if method == "pemt_target" else ()
        card = Card("target", method, task, "b" * 64, "mini", description, experts)
        write_artefact(
            folder / "artefact",
            arrays,
            Card(**{**vars(card), "config": config, "metrics": metrics}),
        )
    if test is not None:
        place = folder / "evaluation"
        (place / "splits").mkdir(parents=True)
        (place / "shop-test.json").write_text(json.dumps({"accuracy": test, "average": test}))
        (place / "splits" / "shop-test.json").write_text(json.dumps(facts or {}))
    return folder


def copies(run: Path, folder: Path, count: int) -> None:
    """Copies of a run that differ in their settings, five seeds of each."""
    text = (run / "config.gin").read_text()
    for i in range(count):
        copy = shutil.copytree(run, folder / f"kind{i // 5}" / f"seed{i % 5}")
        own = text.replace("seed = 0", f"seed = {i % 5}") + f"train.train.rate = {i // 5}\n"
        (copy / "config.gin").write_text(own)


class Page(HTMLParser):
    """A page as a program reads it.

    Attributes:
      tags: every start tag with its attributes, in order.
      text: what is shown, styles left out.
      rows: the cells of every table row.
    """

    VOID = {"meta", "br", "link", "img"}

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.rows = "", []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data

    def row(self, *starts: str) -> list[str]:
        """The first row whose cells start with these."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        return next(row for row in rows if row[: len(starts)] == list(starts))

    def names(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]
