"""Few lengths to pad to, chosen from the data.

A step is compiled for every shape that batches are padded to, minutes each for a large model, so
there are few: for training 4 pairs of an input and a target length, for evaluation 2 input lengths,
or as many as the user says. They are those that need the least padding: a dynamic program over the
lengths of all examples, rounded up to multiples of 8, which suit vector units.
"""

import sys
from collections.abc import Sequence

import numpy as np

from pemt_jax.common.errors import UsageError

MULTIPLE, TARGET_MULTIPLE = 8, 4  # labels are short
TRAIN_SHAPES, EVAL_SHAPES = 4, 2  # chosen where the user chooses nothing
CANDIDATES = 32  # lengths of either kind among which pairs are chosen
Buckets = Sequence[int] | Sequence[Sequence[int]] | int | None


def choose_buckets(
    lengths: np.ndarray, count: int, limit: int, multiple: int = MULTIPLE
) -> tuple[int, ...]:
    """Return at most `count` lengths, ascending, that fit all examples with the least padding.

    Args:
      lengths: tokens of each example.
      count: how many lengths.
      limit: no bucket is longer; nor is any example.
      multiple: buckets are multiples of it, or the limit.
    """
    rounded = np.minimum(-(-np.asarray(lengths) // multiple) * multiple, limit)
    candidates, rows = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(rows)])  # examples shorter than each candidate
    n = len(candidates)
    # cost[j]: tokens of the examples up to candidate j, padded to the buckets so far, j the last.
    cost, last = candidates * below[1:], [np.full(n, -1)]
    for _ in range(min(count, n) - 1):
        # One more bucket: the one before it is candidate i < j, or there is none.
        step = cost[:, None] + candidates[None, :] * (below[None, 1:] - below[1:, None])
        step = np.where(np.arange(n)[:, None] < np.arange(n)[None, :], step, np.iinfo(int).max)
        better = step.min(axis=0) < cost
        last.append(np.where(better, step.argmin(axis=0), -1))
        cost = np.where(better, step.min(axis=0), cost)
    chosen, j = [], n - 1
    for before in reversed(last):
        chosen.append(int(candidates[j]))
        j = before[j]
        if j < 0:
            break
    return tuple(reversed(chosen))


def choose_shapes(
    inputs: np.ndarray, targets: np.ndarray, count: int, limits: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """Return at most `count` pairs (inputs, targets) that fit all examples with the least padding.

    Both lengths ascend from pair to pair, so that the shape of a batch, the longest of its
    examples' pairs, is one of them too.

    Args:
      inputs, targets: tokens of each example.
      count: how many pairs.
      limits: no pair is longer; nor is any example.
    """
    ladders = [
        np.array(choose_buckets(lengths, CANDIDATES, limit, multiple))
        for lengths, limit, multiple in zip(
            (inputs, targets), limits, (MULTIPLE, TARGET_MULTIPLE), strict=True
        )
    ]
    rows = np.zeros([len(ladder) for ladder in ladders], np.int64)
    where = [np.searchsorted(x, n) for x, n in zip(ladders, (inputs, targets), strict=True)]
    np.add.at(rows, tuple(where), 1)
    fits = rows.cumsum(axis=0).cumsum(axis=1).ravel()  # examples that a pair has room for
    grid = np.stack(np.meshgrid(*ladders, indexing="ij"), axis=-1).reshape(-1, 2)
    tokens = grid.sum(axis=1)
    # cost[j]: tokens of the examples that pair j has room for, padded to the pairs so far.
    cost, before = tokens * fits, []
    below = (grid[:, None] <= grid[None]).all(axis=-1) & (tokens[:, None] < tokens[None])
    for _ in range(count - 1):
        # One more pair: the one before it is i, no longer than j in either length.
        step = cost[:, None] + tokens[None] * (fits[None] - fits[:, None])
        step = np.where(below, step, np.iinfo(np.int64).max)
        better = step.min(axis=0) < cost
        before.append(np.where(better, step.argmin(axis=0), np.arange(len(grid))))
        cost = np.where(better, step.min(axis=0), cost)
    chosen = {j := len(grid) - 1}
    for earlier in reversed(before):
        j = earlier[j]
        chosen.add(j)
    return tuple((int(s), int(t)) for s, t in grid[sorted(chosen)])


def train_buckets(buckets: Buckets, splits: Sequence) -> tuple:
    """Return to what lengths training batches are padded, and print them if they were chosen.

    Args:
      buckets: input lengths, pairs (inputs, targets), or how many input lengths to choose; None to
        choose TRAIN_SHAPES pairs.
      splits: `TokenizedSplit`s.

    Raises:
      UsageError: a number below 1.
    """
    if buckets is not None:
        return buckets_for(buckets, splits)
    inputs, targets = (
        np.concatenate([getattr(split, name) for split in splits])
        for name in ("input_lengths", "target_lengths")
    )
    limits = [max(split.lengths[name] for split in splits) for name in ("inputs", "targets")]
    chosen = choose_shapes(inputs, targets, TRAIN_SHAPES, (limits[0], limits[1]))
    padded = pad_to(chosen, inputs, targets).sum()
    print(
        f"Examples of {inputs.mean():.0f} + {targets.mean():.0f} tokens on average are padded to "
        f"{', '.join(f'{s} + {t}' for s, t in chosen)} (inputs + targets): "
        f"{1 - (inputs.sum() + targets.sum()) / padded:.0%} of the tokens are padding.",
        file=sys.stderr,
    )
    return chosen


def eval_buckets(buckets: Buckets, splits: Sequence) -> tuple:
    """Return the input lengths to which batches of evaluation are padded; as `train_buckets`.

    None chooses EVAL_SHAPES of them; pairs are for training.
    """
    if buckets is None or is_pairs(buckets):
        lengths = np.concatenate([split.input_lengths for split in splits])
        return choose_buckets(lengths, EVAL_SHAPES, max(s.lengths["inputs"] for s in splits))
    return buckets_for(buckets, splits)


def longest_row(split, buckets: Sequence[int]) -> int:
    """Tokens of the longest inputs of a split, padded to a bucket if there are any, and of its
    longest targets."""
    if not len(split):
        return 0
    longest, limit = int(split.input_lengths.max()), split.lengths["inputs"]
    if buckets:
        longest = min(bucket for bucket in (*buckets, limit) if bucket >= longest)
    return min(longest, limit) + int(split.target_lengths.max())


def is_pairs(buckets: Buckets) -> bool:
    """Whether buckets are pairs (inputs, targets), not input lengths or a number."""
    return isinstance(buckets, Sequence) and any(isinstance(bucket, Sequence) for bucket in buckets)


def pad_to(
    shapes: Sequence[tuple[int, int]], inputs: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Return the shortest of ascending pairs that each example fits, [examples, 2]."""
    ladder = np.array(shapes)
    return ladder[
        np.maximum(np.searchsorted(ladder[:, 0], inputs), np.searchsorted(ladder[:, 1], targets))
    ]


def buckets_for(buckets: Sequence | int, splits: Sequence) -> tuple:
    """Return the lengths as given or, for a number, that many chosen from the splits and printed.

    Args:
      buckets: lengths, or how many to choose.
      splits: `TokenizedSplit`s.

    Raises:
      UsageError: a number below 1.
    """
    if not isinstance(buckets, int):
        return tuple(tuple(bucket) if is_pairs(buckets) else bucket for bucket in buckets)
    if buckets < 1:
        raise UsageError(f"Found {buckets} buckets, expected a number of at least 1, or lengths.")
    lengths = np.concatenate([split.input_lengths for split in splits])
    chosen = choose_buckets(lengths, buckets, max(split.lengths["inputs"] for split in splits))
    padded = int(np.array(chosen)[np.searchsorted(chosen, lengths)].sum())
    print(
        f"Inputs of {lengths.mean():.0f} tokens on average are padded to {chosen}: "
        f"{1 - lengths.sum() / padded:.0%} of the tokens are padding.",
        file=sys.stderr,
    )
    return chosen
