"""The commands `list` and `show`: which tasks there are, and what their examples look like."""

import fnmatch
import functools
from collections.abc import Sequence

import numpy as np
import seqio

from pemt_jax.common.errors import UsageError, nearest
from pemt_jax.common.flat_config import at_least
from pemt_jax.tasks.commands.preparing import tasks_named
from pemt_jax.tasks.descriptions import description, of_task
from pemt_jax.tasks.sources import cached
from pemt_jax.tasks.sources.split_source import SplitSource
from pemt_jax.tasks.splits import SPLITS

HEADINGS = ("TASK", *(split.upper() for split in SPLITS), "DATA", "METRIC", "SOURCE")


def print_table(patterns: Sequence[str]) -> None:
    """Print the tasks whose names match one of the shell patterns, or all without patterns."""
    names = sorted(seqio.TaskRegistry.names())
    if patterns:
        matching = [fnmatch.filter(names, pattern) for pattern in patterns]
        for pattern, found in zip(patterns, matching, strict=True):
            if not found:
                raise UsageError(
                    f"No task matches {pattern!r}, expected the name of one or a pattern such as "
                    f"'pemt_*'{nearest(pattern, names)}."
                )
        names = [name for name in names if any(name in found for found in matching)]
    print(table(names))


def print_examples(names: Sequence[str], split: str, count: int) -> None:
    """Print the first examples of a split of each named task or mixture."""
    for task in tasks_named(names, "show"):
        print(examples(task, split, count), end="\n\n")


def table(names: Sequence[str]) -> str:
    """One line per task: the sizes of its splits where they are known, whether the data are on
    disk, metric and source. No data set is opened.
    """
    lines = [HEADINGS, *(_line(seqio.TaskRegistry.get(name)) for name in names)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if heading in HEADINGS[1:4] else cell.ljust(width)
            for cell, width, heading in zip(line, widths, HEADINGS, strict=True)
        ).rstrip()
        for line in lines
    )


def _line(task: seqio.Task) -> tuple[str, ...]:
    source, data, name = task.source, "-", type(task.source).__name__
    sizes: dict[str, object] = {}
    if isinstance(source, SplitSource):
        sizes.update(source.known_sizes())
        name = str(source.data)
        if source.few_shot:
            each = " per label" if source.target.counted else ""
            sizes["train"] = f"{source.few_shot.shots}{each}"
        on_disk = source.data.sizes() is not None
        data = "on disk" if on_disk else ("cached" if cached.folder(task) else "no")
    counts = [
        ("?" if sizes.get(split) is None else f"{sizes[split]}") if split in task.splits else "-"
        for split in SPLITS
    ]
    metrics = [
        getattr(metric.func if isinstance(metric, functools.partial) else metric, "__name__", "?")
        for metric in task.metric_fns
    ]
    return (task.name, *counts, data, ", ".join(metrics) or "-", name)


def examples(task: seqio.Task, split: str, count: int) -> str:
    """The description of a task and the first examples of a split, as the model reads them."""
    at_least(1, **{"--rows": count})
    if split not in task.splits:
        raise UsageError(
            f"Task {task.name!r} has no split {split!r}, expected one of "
            f"{', '.join(task.splits)}{nearest(split, task.splits)}."
        )
    lines = [f"{task.name} {split}", f"prompt   {description(task.name)}"]
    with of_task(task, split):
        dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
        found = list(dataset.take(count).as_numpy_iterator())
    for example in found:
        lines.append("")
        for name in ("row", "inputs_pretokenized", "targets_pretokenized", "answers", "group"):
            if name in example:
                lines.append(
                    f"{name.removesuffix('_pretokenized').ljust(8)} {_shown(example[name])}"
                )
        lines.append(
            f"tokens   {len(example['inputs'])} and {len(example['targets'])}: "
            f"{' '.join(map(str, example['targets'].tolist()))}"
        )
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return repr(value.decode())
    if isinstance(value, np.ndarray) and value.ndim:
        return ", ".join(_shown(item) for item in value.tolist())
    return str(value)
