"""Which rows of a data set are training, validation and test rows: the paper's three policies.

    Halves   small sets: train as it is; validation, permuted, gives validation and test
    HeldOut  large sets: of train, permuted, the first 1,000 are validation; test is another split
    Own      the data set's own splits

All permutations are `torch.randperm` seeded 42, as in the authors' code (see permutation.py), over
the rows in their original order. A policy says which rows a split has; a source yields them in the
order of its files, which training shuffles and metrics do not see.

Departures: a question of MultiRC keeps all its answers in one half (`question_groups.whole =
False` splits by row, as the authors do); fewer than 10,000 rows hold out a tenth, not 1,000.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import gin
import numpy as np

from pemt_jax.common.errors import UsageError
from pemt_jax.tasks.sources.permutation import DATA_SEED, torch_randperm

SPLITS = ("train", "validation", "test")


@gin.configurable
def question_groups(whole: bool = True) -> bool:
    """Whether the answers of one question stay in one half of the validation set."""
    return whole


@dataclass(frozen=True)
class Own:
    """The data set's splits under our three names; None where it has none."""

    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"

    @property
    def parts(self) -> dict[str, str]:
        """The data set's split that each of ours is taken from."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: part for split, part in named.items() if part}

    def size(self, split: str, size: int) -> int:
        """How many of the `size` rows of its part a split has."""
        del split
        return size

    def positions(self, split: str, size: int, groups: np.ndarray | None = None) -> np.ndarray:
        """Positions in the original order of `size` rows that belong to `split`."""
        del split, groups
        return np.arange(size)


@dataclass(frozen=True)
class Halves:
    """Training rows as they are; half of another split for validation, the rest of it for test."""

    train: str = "train"
    halved: str = "validation"

    @property
    def parts(self) -> dict[str, str]:
        return {"train": self.train, "validation": self.halved, "test": self.halved}

    def size(self, split: str, size: int) -> int:
        """As `Own.size`, where no groups are kept whole."""
        return {"train": size, "validation": size // 2, "test": size - size // 2}[split]

    def positions(self, split: str, size: int, groups: np.ndarray | None = None) -> np.ndarray:
        """As `Own.positions`; `groups` [size] numbers what must not be torn apart."""
        if split == "train":
            return np.arange(size)
        if groups is None:
            permutation = torch_randperm(size)
        else:  # permute the groups, then take the rows of each
            numbers, first = np.unique(groups, return_index=True)
            in_order = numbers[np.argsort(first)]
            size = len(in_order)
            permutation = in_order[torch_randperm(size)]
        half = size // 2
        chosen = permutation[:half] if split == "validation" else permutation[half:]
        return chosen if groups is None else np.flatnonzero(np.isin(groups, chosen))


@dataclass(frozen=True)
class HeldOut:
    """Some training rows for validation, at most `at_most` of the others for training."""

    train: str = "train"
    test: str = "validation"
    at_most: int | None = None

    @property
    def parts(self) -> dict[str, str]:
        return {"train": self.train, "validation": self.train, "test": self.test}

    def size(self, split: str, size: int) -> int:
        """As `Own.size`."""
        held_out = min(1000, size // 10)
        rest = size - held_out if self.at_most is None else min(size - held_out, self.at_most)
        return {"train": rest, "validation": held_out, "test": size}[split]

    def positions(self, split: str, size: int, groups: np.ndarray | None = None) -> np.ndarray:
        """As `Own.positions`."""
        del groups
        if split == "test":
            return np.arange(size)
        held_out = self.size("validation", size)
        permutation = torch_randperm(size)
        if split == "validation":
            return permutation[:held_out]
        return permutation[held_out:][: self.at_most]


Policy = Own | Halves | HeldOut


@gin.configurable
@dataclass(frozen=True)
class FewShot:
    """How few training rows are drawn.

    Attributes:
      shots: rows of each label value, or rows in all where the target is no label.
      seed: of the order in which rows are looked at; the authors' is 42.
      from_whole_train: look at all training rows as the authors do, those that are validation rows
        of a HeldOut policy among them.
    """

    shots: int = 8
    seed: int = DATA_SEED
    from_whole_train: bool = False

    def __post_init__(self):
        if self.shots < 1:
            raise UsageError(f"FewShot.shots is {self.shots}, expected 1 or more.")

    def draw(
        self, train: Sequence[int] | np.ndarray, size: int, labels: np.ndarray | None
    ) -> np.ndarray:
        """Positions of the drawn rows.

        Args:
          train: positions of the training rows.
          size: of the data set's split that they are taken from.
          labels: a value for each of the `size` rows, or None where the target is no label.
        """
        order = list(range(size))
        random.Random(self.seed).shuffle(order)
        allowed = np.ones(size, bool)
        if not self.from_whole_train:
            allowed[:] = False
            allowed[np.asarray(train)] = True
        counts: dict[object, int] = {}
        drawn = []
        for position in order:
            label = None if labels is None else labels[position]
            if allowed[position] and counts.get(label, 0) < self.shots:
                counts[label] = counts.get(label, 0) + 1
                drawn.append(position)
        return np.array(drawn, np.int64)
