"""SeqIO tasks tokenised once, cached on disk and addressed by example number.

SeqIO defines a task and its preprocessing; this module runs it and writes the tokens as flat
arrays, read through memory maps, under a key made of everything they depend on (cache_key).
Their sha256 is checked whenever they are opened, and damaged ones are made again.
An online transform (tokenized.OnlineTransform, such as span corruption) must be the last
preprocessor and is not cached; it runs when examples are read, drawn from (seed, epoch, row), so
that its noise differs between epochs.

Where $PEMT_JAX_CACHE names a bucket, what one machine has tokenised the others download
(shared_tokens).

If one of SeqIO's folders of cached tasks has the task, and is not outdated, the examples are read
from there.

Departures from SeqIO: inputs that are too long keep their </s>; a target that is too long is an
error, not a silently shortened label.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest, say
from pemt_jax.data import shared_tokens
from pemt_jax.data.cache_key import cache_key, check_dataset, rows_of_source
from pemt_jax.data.tokenized import OnlineTransform, Ragged, TokenizedSplit, to_json, type_names
from pemt_jax.tasks.descriptions import of_task, unknown_task
from pemt_jax.tasks.sources import cached


def open_mixture(
    name: str, split: str, lengths: Mapping[str, int], cache_folder: str | None = None
) -> list[tuple[float, TokenizedSplit]]:
    """Open every task of a mixture with its rate; a task is a mixture of one.

    As in SeqIO, tasks without that split are left out; UsageError when no task has it.
    """
    check_task(name)
    if name in seqio.TaskRegistry.names():
        return [(1.0, open_split(name, split, lengths, cache_folder))]
    mixture = seqio.MixtureRegistry.get(name)
    parts = [
        (float(mixture.get_rate(task)), task.name) for task in mixture.tasks if split in task.splits
    ]
    if not parts:
        splits = {split for task in mixture.tasks for split in task.splits}
        raise UsageError(
            f"no task of the mixture {name!r} has a split {split!r}{nearest(split, splits)}"
        )
    return [(rate, open_split(task, split, lengths, cache_folder)) for rate, task in parts if rate]


def open_split(
    task_name: str, split: str, lengths: Mapping[str, int], cache_folder: str | None = None
) -> TokenizedSplit:
    """Open a split of a task, tokenising it if it is not in the cache.

    Args:
      task_name: a registered SeqIO task.
      split: one of its splits.
      lengths: {"inputs": n, "targets": n}, the most tokens of each, including </s>.
      cache_folder: where the tokens are stored; None means $PEMT_JAX_CACHE/tokens or
        ~/.cache/pemt_jax/tokens.

    Raises:
      UsageError: unknown task or split, or a length is missing.
      PemtError: the split is empty, or a target is longer than its limit.
    """
    if task_name not in seqio.TaskRegistry.names():
        raise unknown_task(task_name)
    task = seqio.TaskRegistry.get(task_name)
    if split not in task.splits:
        raise UsageError(
            f"Task {task_name!r} has no split {split!r}, expected one of "
            f"{', '.join(sorted(task.splits))}{nearest(split, task.splits)}."
        )
    for feature in ("inputs", "targets"):
        if not lengths.get(feature):
            raise UsageError(f"TASK_FEATURE_LENGTHS has no length for {feature!r}, expected one.")
    root = Path(cache_folder) if cache_folder else storage.cache_folder() / "tokens"
    lengths = {name: int(lengths[name]) for name in ("inputs", "targets")}
    with of_task(task, split):
        folder = root / f"{task_name}-{split}-{cache_key(task, split, lengths)[:20]}"
    if folder.is_dir():
        try:
            return _load(folder, task, split, lengths)
        except (OSError, ValueError, KeyError, TypeError, EOFError):  # damaged: made again
            shutil.rmtree(folder, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    shared = None if cache_folder else storage.shared_cache()
    with tempfile.TemporaryDirectory(dir=root, prefix=".unfinished-") as unfinished:
        made = Path(unfinished, "split")
        if shared and shared_tokens.download(shared / "tokens" / folder.name, made):
            try:
                _load(made, task, split, lengths)
            except (OSError, ValueError, KeyError, TypeError, EOFError):  # damaged
                shutil.rmtree(made)
        if not made.is_dir():
            say(f"tokenising {split} of {task_name}")
            with of_task(task, split):
                _tokenize(task, split, lengths, made)
            if shared:
                shared_tokens.upload(made, shared / "tokens" / folder.name)
        try:
            os.rename(made, folder)
        except OSError:  # another process was faster and has stored the same tokens there
            if not folder.is_dir():
                raise
    return _load(folder, task, split, lengths)


def check_task(name: str) -> None:
    """Raise UsageError when there is no task or mixture of this name."""
    if name not in seqio.TaskRegistry.names() and name not in seqio.MixtureRegistry.names():
        raise unknown_task(name)


def _load(folder: Path, task: seqio.Task, split: str, lengths: Mapping[str, int]) -> TokenizedSplit:
    """Open a folder of the cache; ValueError when its bytes are not those that were written."""
    meta = json.loads((folder / "meta.json").read_text())
    with contextlib.suppress(OSError):  # a cache that is shared may be read-only
        os.utime(folder / "meta.json")  # the last use, for `python -m pemt_jax.tasks cache`
    if meta.pop("meta_sha256") != _digest_json(meta):
        raise ValueError("meta.json is damaged")
    parts = {
        name: Ragged(
            np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}_offsets.npy")
        )
        for name in [*meta["columns"], "other"]
    }
    if _digest(parts) != meta["sha256"]:
        raise ValueError("an array is damaged")
    other = parts.pop("other")
    return TokenizedSplit(
        task_name=task.name,
        split=split,
        lengths=lengths,
        columns=parts,
        other=other,
        dtypes=meta["dtypes"],
        online=_cached_steps(task)[1],
        sha256=meta["sha256"],
    )


def _cached_steps(task: seqio.Task) -> tuple[list, OnlineTransform | None]:
    """The preprocessors whose result is cached, and the online transform after them, if any."""
    steps = []
    for position, step in enumerate(task.preprocessors):
        if hasattr(step, "apply") and hasattr(step, "lengths"):
            if after := task.preprocessors[position + 1 :]:
                raise UsageError(
                    f"Task {task.name!r} has {len(after)} preprocessors after its "
                    "online transform, expected none."
                )
            return steps, cast(OnlineTransform, step)
        if isinstance(step, seqio.CacheDatasetPlaceholder):
            continue
        # `_within` applies the limits, and refuses targets that are too long.
        steps.append(
            seqio.preprocessors.append_eos
            if step is seqio.preprocessors.append_eos_after_trim
            else step
        )
    return steps, None


def _rows(task: seqio.Task, split: str, lengths: Mapping[str, int]) -> tf.data.Dataset:
    if cached.usable(task, split):  # nothing is trimmed without lengths
        return task.get_dataset(None, split, use_cached=True, shuffle=False)
    dataset = rows_of_source(task, split)
    for step in _cached_steps(task)[0]:
        step: Any = seqio.utils.add_kwargs_to_transform(
            step, sequence_length=lengths, output_features=task.output_features
        )
        with seqio.utils.map_seed_manager(0):
            dataset = step(dataset)
            check_dataset(dataset, task, "A preprocessor")
    return dataset


def _tokenize(task: seqio.Task, split: str, lengths: Mapping[str, int], folder: Path) -> None:
    """Write the arrays of a split into a new folder."""
    online = _cached_steps(task)[1]
    names = ["inputs", "targets"] if online is None else ["targets"]
    dataset = _rows(task, split, lengths)
    specs = cast(Mapping[str, Any], dataset.element_spec)
    dtypes = {name: type_names(spec) for name, spec in specs.items() if name not in names}
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in names}
    other = []
    for row, example in enumerate(dataset.as_numpy_iterator()):
        for name in names:
            limit = None if online else lengths[name]
            tokens[name].append(_within(example[name], limit, task, split, name, row))
        text = json.dumps({name: to_json(example[name]) for name in dtypes})
        other.append(np.frombuffer(text.encode(), np.uint8))
    if not other:
        raise PemtError(
            f"split {split!r} of task {task.name!r} is empty; at least one example was expected"
        )
    columns = {name: Ragged.of(rows, np.int32) for name, rows in tokens.items()}
    if online:
        _check_online(online, columns["targets"].lengths, lengths, task)
    parts = {**columns, "other": Ragged.of(other, np.uint8)}
    meta = {"columns": names, "dtypes": dtypes, "sha256": _digest(parts)}
    try:
        folder.mkdir()
        for name, ragged in parts.items():
            for suffix, array in ("", ragged.values), ("_offsets", ragged.offsets):
                with open(folder / f"{name}{suffix}.npy", "wb") as file:
                    np.lib.format.write_array_header_1_0(
                        file, np.lib.format.header_data_from_array_1_0(array)
                    )
                    file.write(array)  # np.save hides the reason of a failed write
        (folder / "meta.json").write_text(json.dumps(meta | {"meta_sha256": _digest_json(meta)}))
    except OSError as error:
        raise PemtError(f"Cannot write {folder.parent.parent}: {error.strerror}.") from error


def _digest(parts: Mapping[str, Ragged]) -> str:
    """The sha256 of all arrays in order; mapped ones are read but not copied."""
    digest = hashlib.sha256()
    for ragged in parts.values():
        digest.update(ragged.values)
        digest.update(ragged.offsets)
    return digest.hexdigest()


def _digest_json(meta: Mapping) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _within(
    tokens: np.ndarray, limit: int | None, task: seqio.Task, split: str, name: str, row: int
) -> np.ndarray:
    """Apply a feature's limit to one example."""
    if limit is None or len(tokens) <= limit:
        return tokens
    if name == "targets":
        raise PemtError(
            f"row {row} of split {split!r} of task {task.name!r} has a target of "
            f"{len(tokens)} tokens but TASK_FEATURE_LENGTHS allows {limit}"
        )
    tokens = tokens[:limit].copy()
    feature = task.output_features[name]
    if feature.add_eos:
        tokens[-1] = feature.vocabulary.eos_id
    return tokens


def _check_online(
    online: OnlineTransform, raw_lengths: np.ndarray, lengths: Mapping[str, int], task: seqio.Task
) -> None:
    for name, found in zip(("inputs", "targets"), online.lengths(raw_lengths), strict=True):
        if found.max() > lengths[name]:
            raise PemtError(
                f"task {task.name!r} makes {name} of {found.max()} tokens but "
                f"TASK_FEATURE_LENGTHS allows {lengths[name]}"
            )
