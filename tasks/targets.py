"""What a task's target text is made of, and which label values a row may have.

    Label    the word of a class               "entailment"
    Number   a number with one decimal         "3.8"
    Option   the text of the right option      "the trophy"
    Answers  the first of several answers      "Denver Broncos"

Each names the fields that it reads, finds invalid values before a data set is built, and renders
the target of a row with TensorFlow operations. A nested field is written with a slash:
"answers/text".
"""

from collections.abc import Callable
from dataclasses import dataclass

import gin
import numpy as np
import tensorflow as tf

from pemt_jax.common.errors import UsageError
from pemt_jax.common.user_input.types import check_fields

NO_ANSWER = "<unk>"  # what the authors' code has where a row has no answer

Row = dict[str, tf.Tensor]


def as_text(value: tf.Tensor) -> tf.Tensor:
    """Texts as they are, numbers in their shortest notation, `true` and `false`."""
    if value.dtype == tf.string:
        return value
    return tf.strings.as_string(value, shortest=value.dtype.is_floating)


def as_numbers(values: np.ndarray) -> np.ndarray:
    """Numbers and booleans as float64, nan for texts; float64 [rows]."""
    if values.dtype.kind in "OSU":
        return np.full(len(values), np.nan)
    return values.astype(np.float64)


class OfField:
    """A target that is made of one field."""

    field: str
    counted = False  # whether a few-shot draw takes rows of each value
    choices: tuple[Callable[[], object], ...] = ()  # of gin, on which the examples depend

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)


@dataclass(frozen=True)
class Label(OfField):
    """The word of a class: `words` by class number, or the labels themselves if they are texts."""

    words: tuple[str, ...]
    field: str = "label"
    counted = True

    def __post_init__(self):
        check_fields(self)
        if not self.words:
            raise UsageError("Label has no words, expected one per class.")

    @property
    def expected(self) -> str:
        return f"0 to {len(self.words) - 1} or one of {', '.join(self.words)}"

    def faulty(self, values: np.ndarray) -> np.ndarray:
        """Which values are not labels of the task, bool [rows]."""
        if values.dtype.kind in "OSU":
            words = [word.encode() for word in self.words]
            return np.array([value not in words for value in values], bool)
        return ~np.isin(as_numbers(values), range(len(self.words)))

    def render(self, row: Row) -> tf.Tensor:
        value = row[self.field]
        if value.dtype == tf.string:
            return value
        return tf.gather(self.words, tf.cast(value, tf.int32))


@dataclass(frozen=True)
class Number(OfField):
    """A number from `low` to `high`, rounded to one decimal, ties to the even digit."""

    field: str = "label"
    low: float = 0.0
    high: float = 5.0

    @property
    def expected(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def faulty(self, values: np.ndarray) -> np.ndarray:
        numbers = as_numbers(values)
        return ~((numbers >= self.low) & (numbers <= self.high))

    def render(self, row: Row) -> tf.Tensor:
        return tf.strings.as_string(tf.cast(row[self.field], tf.float64), precision=1)


@dataclass(frozen=True)
class Option(OfField):
    """The text of the field among `options` whose number the label is."""

    options: tuple[str, ...]
    field: str = "label"

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field, *self.options)

    @property
    def expected(self) -> str:
        return f"0 to {len(self.options) - 1} ({', '.join(self.options)})"

    def faulty(self, values: np.ndarray) -> np.ndarray:
        return ~np.isin(as_numbers(values), range(len(self.options)))

    def render(self, row: Row) -> tf.Tensor:
        return tf.gather(
            tf.stack([row[name] for name in self.options]), tf.cast(row[self.field], tf.int32)
        )


@gin.configurable
def examples_per_answer(everywhere: bool = False) -> bool:
    """Whether every answer is an example of its own in validation and test too, as in the authors'
    code, where `Answers.one_example_each` makes it one in training."""
    return everywhere


@dataclass(frozen=True)
class Answers(OfField):
    """The first of a list of answers; the metric sees all of them.

    Attributes:
      field: a list of texts, or one text.
      one_example_each: in training, every answer becomes an example of its own (ReCoRD).
    """

    field: str = "answers"
    one_example_each: bool = False

    @property
    def choices(self) -> tuple[Callable[[], object], ...]:
        return (examples_per_answer,) if self.one_example_each else ()

    def render(self, row: Row) -> tf.Tensor:
        return self.all(row)[0]

    def all(self, row: Row) -> tf.Tensor:
        """All answers, string [answers >= 1]."""
        answers = tf.reshape(as_text(row[self.field]), [-1])
        return tf.cond(tf.size(answers) > 0, lambda: answers, lambda: tf.constant([NO_ANSWER]))


Target = Label | Number | Option | Answers
