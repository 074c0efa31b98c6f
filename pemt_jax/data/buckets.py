"""Few lengths to pad to, chosen from the data.

A step is compiled for every length that batches are padded to, so the user chooses their number,
and the lengths are those that need the least padding: a dynamic program over the lengths of all
examples, rounded up to multiples of 8, which suit vector units.
"""

from collections.abc import Sequence

import numpy as np

from pemt_jax.common.errors import UsageError

MULTIPLE = 8


def choose_buckets(lengths: np.ndarray, count: int, limit: int) -> tuple[int, ...]:
    """Return at most `count` lengths, ascending, that fit all examples with the least padding.

    Args:
      lengths: tokens of each example.
      count: how many lengths.
      limit: no bucket is longer; nor is any example.
    """
    rounded = np.minimum(-(-np.asarray(lengths) // MULTIPLE) * MULTIPLE, limit)
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


def buckets_for(buckets: Sequence[int] | int, splits: Sequence) -> tuple[int, ...]:
    """Return the lengths as given or, for a number, that many chosen from the splits and printed.

    Args:
      buckets: lengths, or how many to choose.
      splits: `TokenizedSplit`s.

    Raises:
      UsageError: a number below 1.
    """
    if not isinstance(buckets, int):
        return tuple(buckets)
    if buckets < 1:
        raise UsageError(f"Found {buckets} buckets, expected a number of at least 1, or lengths.")
    lengths = np.concatenate([split.input_lengths for split in splits])
    chosen = choose_buckets(lengths, buckets, max(split.lengths["inputs"] for split in splits))
    padded = int(np.array(chosen)[np.searchsorted(chosen, lengths)].sum())
    print(
        f"Inputs of {lengths.mean():.0f} tokens on average are padded to {chosen}: "
        f"{1 - lengths.sum() / padded:.0%} of the tokens are padding."
    )
    return chosen
