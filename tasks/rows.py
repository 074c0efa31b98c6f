"""Tasks over examples that a Python program has in memory, or over JSON-lines files.

    from_rows(
        "reviews",
        {"train": [{"text": "So good.", "label": "good"}, ...], "validation": "dev.jsonl"},
        inputs="review: {text}",
        labels=("bad", "good"),
        description="Say whether a review is good or bad.")

Examples in memory are written once to $PEMT_JAX_CACHE/rows, as JSON lines under the sha256 of their
content, so that the task is one over files, as any other: what is cached and checked for it works
the same, and equal examples are the same data wherever they come from.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pemt_jax.common.errors import UsageError, shortened
from pemt_jax.common.storage import cache_folder, replacing
from pemt_jax.tasks import metrics
from pemt_jax.tasks.registry import Dataset, check_no_others, register
from pemt_jax.tasks.splits import Halves, Own, Policy
from pemt_jax.tasks.targets import Answers, Label, Number, Option, Target

Rows = Iterable[Mapping[str, object]] | str | os.PathLike


def from_rows(
    name: str,
    data: Mapping[str, Rows],
    inputs: str,
    labels: Sequence[str] | Target,
    description: str,
    metric: Callable[..., Mapping[str, float]] | None = None,
    splits: Policy | None = None,
) -> Dataset:
    """Register a task over examples in memory or in JSON-lines files, and its few-shot variants.

    Args:
      name: of the task. Used again, as when the cell of a notebook runs again, it replaces the
        earlier task.
      data: by split, dictionaries whose values are texts, numbers, true or false, or lists of
        texts; or the path of a JSON-lines file of them. By default the splits are `train`,
        `validation` and, if there is one, `test`.
      inputs: the template of the inputs, with fields of a row in braces.
      labels: the words of the classes, by class number, for rows whose field `label` is a word or a
        number; or what else makes the targets, see pemt_jax.tasks.targets.
      description: what the task asks, in one sentence; its tokens make the prompt.
      metric: (targets, predictions) -> scores with their `average`, in percent. By default accuracy
        for labels and options, SQuAD's metrics for answers, correlations for numbers.
      splits: what becomes training, validation and test examples, see pemt_jax.tasks.splits. By
        default the splits of `data`; without `test`, half of validation is the test split.

    Raises:
      UsageError: the name is that of another task, or an argument does not fit.
      PemtError: the examples cannot be written.
    """
    if not isinstance(data, Mapping):
        found = "None" if data is None else f"a {type(data).__name__}"
        raise UsageError(
            f"The data of task {name!r} are {found}, expected a dictionary such as "
            '{"train": rows, "validation": rows}.'
        )
    if splits is None:
        splits = Own() if "test" in data else Halves()
    if not isinstance(labels, Label | Number | Option | Answers):
        labels = Label(_words(name, labels))
    if metric is None:
        metric = (
            metrics.squad
            if isinstance(labels, Answers)
            else metrics.correlations
            if isinstance(labels, Number)
            else metrics.accuracy
        )
    _check_splits(name, data, splits)
    dataset = Dataset(
        name=name,
        data={split: _file(name, split, rows) for split, rows in data.items()},
        inputs=inputs,
        target=labels,
        metric=metric,
        description=description,
        splits=splits,
    )
    register(dataset)
    return dataset


def _words(name: str, labels: Sequence[str]) -> tuple[str, ...]:
    words = labels if isinstance(labels, Sequence) and not isinstance(labels, str) else ()
    if not words or not all(isinstance(word, str) for word in words):
        raise UsageError(
            f"The labels of task {name!r} are {labels!r}, expected the words of its classes, such "
            "as ('bad', 'good'), or a target of pemt_jax.tasks.targets."
        )
    return tuple(labels)


def _check_splits(name: str, data: Mapping[str, Rows], policy: Policy) -> None:
    """Refuse data without a split that the policy reads, or with one that it does not."""
    check_no_others(name, data, policy)
    wanted = list(dict.fromkeys(policy.parts.values()))
    if missing := [split for split in wanted if split not in data]:
        raise UsageError(
            f"Task {name!r} has no data of the split {missing[0]!r}, expected "
            f"{', '.join(wanted)}; `splits` can name others."
        )


def _file(name: str, split: str, rows: Rows) -> str:
    """The JSON-lines file of a split's examples, written where it is missing."""
    if isinstance(rows, str | os.PathLike):
        return os.fspath(rows)
    if not isinstance(rows, Iterable):
        raise UsageError(
            f"Split {split!r} of task {name!r} is {shortened(rows)}, expected rows or the path of "
            "a JSON-lines file."
        )
    content = b"".join(_line(name, split, number, row) for number, row in enumerate(rows))
    if not content:
        raise UsageError(f"Split {split!r} of task {name!r} is empty, expected at least one row.")
    digest = hashlib.sha256(content).hexdigest()
    path = cache_folder() / "rows" / f"{digest}.jsonl"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        with replacing(path) as partial:
            Path(partial).write_bytes(content)
    return str(path)


def _line(name: str, split: str, number: int, row: Mapping[str, object]) -> bytes:
    try:
        if not isinstance(row, Mapping):
            raise TypeError(f"it is {row!r}")
        text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False, default=_plain)
        return f"{text}\n".encode()
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"Row {number} of split {split!r} of task {name!r} cannot be written as JSON "
            f"({error}), expected a dictionary of texts, numbers, true or false, or lists of texts."
        ) from error


def _plain(value: object) -> object:
    """NumPy's numbers and arrays as Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
