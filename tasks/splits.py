"""Which rows of a data set are training, validation and test rows: the paper's three policies.

    Halves   small data sets: validation, permuted, is halved into validation and test
    HeldOut  large data sets: of train, permuted, the first 1,000 rows are validation; test is
             another split
    Own      the data set's own splits

All permutations are `torch.randperm` seeded 42, as in the authors' code (see permutation.py), over
the rows in their original order. A policy chooses the rows of a split; a source yields them in the
order of its files, which training shuffles and which metrics do not depend on.

Departures: all answers to a question of MultiRC stay in one half (`question_groups.whole = False`
splits by row, as the authors' code does); of fewer than 10,000 rows a tenth is held out, not 1,000.
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
    """Whether the answers to one question stay in one half of the validation set."""
    return whole


@dataclass(frozen=True)
class Own:
    """The data set's splits under our three names; None for a split that it lacks."""

    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"

    @property
    def parts(self) -> dict[str, str]:
        """The data set's split that each of ours is taken from."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: part for split, part in named.items() if part}

    def size(self, split: str, size: int) -> int:
        """How many rows a split takes from a part of `size` rows."""
        del split
        return size

    def positions(self, split: str, size: int, groups: np.ndarray | None = None) -> np.ndarray:
        """Positions in the original order of `size` rows that belong to `split`."""
        del split, groups
        return np.arange(size)


@dataclass(frozen=True)
class Halves:
    """All training rows; half of another split for validation, the rest of it for test."""

    train: str = "train"
    halved: str = "validation"

    @property
    def parts(self) -> dict[str, str]:
        return {"train": self.train, "validation": self.halved, "test": self.halved}

    def size(self, split: str, size: int) -> int:
        """As `Own.size`, without groups."""
        return {"train": size, "validation": size // 2, "test": size - size // 2}[split]

    def positions(self, split: str, size: int, groups: np.ndarray | None = None) -> np.ndarray:
        """As `Own.positions`; rows of equal `groups` [size] stay in one half."""
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
    """Some training rows for validation, and at most `at_most` of the others for training."""

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
    """How many training rows a few-shot task draws.

    Attributes:
      shots: rows per label, or in total where the target is not a label.
      seed: of the order in which rows are considered; the authors use 42.
      from_whole_train: consider all training rows as the authors' code does, including those that
        HeldOut takes for validation.
    """

    shots: int = 8
    seed: int = DATA_SEED
    from_whole_train: bool = False

    def __post_init__(self):
        if self.shots < 1:
            raise UsageError(f"FewShot.shots is {self.shots}, expected 1 or more.")

    def draw(
        self, train: np.ndarray | Sequence[int], size: int, labels: np.ndarray | None
    ) -> np.ndarray:
        """Positions of the drawn rows.

        Args:
          train: positions of the training rows.
          size: of the data set's split that they are taken from.
          labels: the value of each of the `size` rows, or None where the target is not a label.
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
