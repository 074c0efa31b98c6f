"""A `Dataset` describes a data set; `register` makes SeqIO tasks of it.

    register(Dataset(
        name="reviews", data={"train": "train.jsonl", "validation": "dev.jsonl"},
        inputs="review: {text}", target=Label(("bad", "good")), metric=metrics.accuracy,
        splits=Halves(), description="Say whether a review is good or bad."))

registers `reviews` and its few-shot variants `reviews_4`, `_8`, `_16`, `_32` and `reviews_few`,
whose number of examples gin sets (`FewShot.shots`). All share validation and test examples.
"""

import functools
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import seqio

from pemt_jax.common.errors import UsageError, nearest, shortened
from pemt_jax.common.user_input.types import check_fields
from pemt_jax.tasks import metrics
from pemt_jax.tasks.descriptions import register_description
from pemt_jax.tasks.rendering import render
from pemt_jax.tasks.sources.split_source import SplitSource
from pemt_jax.tasks.splits import Own, Policy
from pemt_jax.tasks.targets import Row, Target
from pemt_jax.tasks.vocabulary import FEATURES

SHOTS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
      name: of the task.
      data: a TFDS name with its version, or paths of JSON-lines files by split.
      inputs: the template of the inputs, with fields of a row in braces.
      target: what makes the targets, see pemt_jax.tasks.targets.
      metric: (targets, predictions) -> scores with their `average`, see pemt_jax.tasks.metrics.
      description: what the task asks, in one sentence; its tokens make the prompt.
      splits: what becomes training, validation and test examples, see pemt_jax.tasks.splits.
      clean: changes a row before the template is filled, see pemt_jax.tasks.rendering.
      clean_fields: fields that `clean` reads besides those of the template.
      choices: gin's choices that `clean` makes; caches of other choices are not used.
      order: fields that number the rows in their original order.
      group: fields that number the question which a row belongs to.
      drop_unlabelled: leave out rows with a negative label.
    """

    name: str
    data: str | Mapping[str, str]
    inputs: str
    target: Target
    metric: Callable[..., Mapping[str, float]]
    description: str
    splits: Policy = Own()
    clean: Callable[[Row], Row] | None = None
    clean_fields: tuple[str, ...] = ()
    choices: tuple[Callable[[], object], ...] = ()
    order: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    drop_unlabelled: bool = False

    def __post_init__(self):
        check_fields(self)
        for name in ("name", "description"):
            if not getattr(self, name).strip():
                raise UsageError(f"Dataset.{name} is empty, expected a text.")
        if not re.fullmatch(r"[\w.:#]+", self.name):
            raise UsageError(
                f"Found Dataset.name {shortened(self.name)}, expected letters, digits, _.:#."
            )

    @property
    def fields(self) -> list[str]:
        """The fields of a row that the task reads."""
        named = [field for _, field, _, _ in string.Formatter().parse(self.inputs) if field]
        return sorted({*named, *self.target.fields, *self.clean_fields, *self.group})


_registered: dict[str, seqio.Task] = {}  # by users, who may register them again


def register(dataset: Dataset) -> None:
    """Register a data set's task, its few-shot variants and its prompt text; reads no data.

    A data set of the same name that was registered here before is replaced, as when the cell of a
    notebook runs again. Mixtures keep the tasks that they were made of.

    Raises:
      UsageError: the name is that of another task, or the template has no fields.
    """
    if not isinstance(dataset, Dataset):
        raise UsageError(f"Found {shortened(dataset)} to register, expected a Dataset.")
    _registered.update(register_packaged(dataset))


def register_packaged(dataset: Dataset) -> dict[str, seqio.Task]:
    """As `register`, for the package's own data sets, which are not replaced; returns the tasks."""
    _check_template(dataset)
    check_no_others(dataset.name, dataset.data, dataset.splits)
    variants = {dataset.name: None, **{f"{dataset.name}_{n}": {"shots": n} for n in SHOTS}}
    variants[f"{dataset.name}_few"] = {}
    for name in variants:
        _check_name(name, dataset)
    for name in variants:
        seqio.TaskRegistry.remove(name)
        register_description(name, dataset.description)
    return {name: _add(dataset, name, few_shot) for name, few_shot in variants.items()}


def _check_template(row: Dataset) -> None:
    try:
        fields = [
            field for _, field, _, _ in string.Formatter().parse(row.inputs) if field is not None
        ]
    except ValueError:  # a brace without its other half
        fields = []
    if not fields or not all(field and not field.isdigit() for field in fields):
        raise UsageError(
            f"The template {row.inputs!r} of task {row.name!r} cannot be filled, "
            "expected fields in braces, such as {text}."
        )


def check_no_others(name: str, data: object, policy: Policy) -> None:
    """Refuse files of a split that the policy does not read, which would be ignored."""
    wanted = list(dict.fromkeys(policy.parts.values()))
    for split in data if isinstance(data, Mapping) else ():
        if split not in wanted:
            raise UsageError(
                f"Task {name!r} has data of a split {split!r}, expected "
                f"{', '.join(wanted)}{nearest(split, wanted)}; `splits` can name others."
            )


def _check_name(name: str, dataset: Dataset) -> None:
    """Refuse names that are taken, except by what `register` made of a data set of this name."""
    task = seqio.TaskRegistry.get(name) if name in seqio.TaskRegistry.names() else None
    again = (
        task is not None
        and task is _registered.get(name)
        and isinstance(task.source, SplitSource)
        and task.source.base == dataset.name
    )
    kind = "task" if task else "mixture" if name in seqio.MixtureRegistry.names() else None
    if kind and not again:
        raise UsageError(f"There is a {kind} {name!r} already, expected a name that is free.")


def _add(row: Dataset, name: str, few_shot: Mapping[str, int] | None) -> seqio.Task:
    # SeqIO's types want a number of examples where its own sources have None.
    source: Any = SplitSource(
        name,
        row.data,
        row.fields,
        row.target,
        row.splits,
        order=row.order,
        group=row.group,
        drop_unlabelled=row.drop_unlabelled,
        base=row.name,
        few_shot=few_shot,
        choices=(*row.choices, *row.target.choices),
    )
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            functools.partial(
                render, template=row.inputs, target=row.target, clean=row.clean, group=row.group
            ),
            # What SeqIO caches is text, so that it serves every vocabulary.
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos_after_trim,
        ],
        postprocess_fn=metrics.postprocess,
        metric_fns=[row.metric],
        output_features=FEATURES,
    )
