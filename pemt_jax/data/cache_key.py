"""The key of cached tokens: a hash of everything that they depend on.

A source may identify its rows itself (`fingerprint(split)`, see pemt_jax.tasks.sources); a TFDS
source is identified by its name and version, a source over files by their names, sizes and times.
The rows of any other source are read and hashed, because nothing else tells whether a function
would still return the same. Vocabularies count with their contents, preprocessors with the text of
their module, their arguments and the values that they have captured; what a preprocessor reads from
elsewhere is not seen.
"""

import functools
import hashlib
import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from pemt_jax.common.errors import PemtError, shortened
from pemt_jax.common.versions import VERSION
from pemt_jax.tasks.sources import cached

FORMAT = 2  # part of every key: increase it when the meaning of the files changes


def cache_key(task: seqio.Task, split: str, lengths: Mapping[str, int]) -> str:
    """Hash of what the tokens of a split depend on."""
    parts = [
        FORMAT,
        VERSION,
        task.name,
        split,
        sorted(lengths.items()),
        _rows_identity(task, split),
    ]
    parts += [_identity(step, {}) for step in task.preprocessors]
    parts += [
        (name, feature.add_eos, _vocabulary_identity(feature.vocabulary))
        for name, feature in sorted(task.output_features.items())
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def rows_of_source(task: seqio.Task, split: str) -> tf.data.Dataset:
    """The rows of a split as the task's source has them, in its order."""
    found = task.source.get_dataset(split=split, shuffle=False)
    return check_dataset(found, task, "The source")


def check_dataset(found: Any, task: seqio.Task, what: str) -> tf.data.Dataset:
    """Return what user code made of a data set; PemtError where it is none."""
    if not isinstance(found, tf.data.Dataset):
        raise PemtError(
            f"{what} of task {task.name!r} returned {shortened(found)}, expected a tf.data.Dataset."
        )
    return found


def _rows_identity(task: seqio.Task, split: str) -> object:
    source = task.source
    if cached.usable(task, split):
        return cached.identity(task, split)
    if fingerprint := getattr(source, "fingerprint", None):
        return fingerprint(split)
    if isinstance(source, seqio.TfdsDataSource):
        splits = source.splits
        named = sorted(splits.items()) if isinstance(splits, Mapping) else []
        return source.tfds_dataset.name, named
    if isinstance(source, seqio.FileDataSource):
        return (
            _identity(getattr(source, "_reader", None), {}),
            [(path, *_size_and_time(path)) for path in sorted(source.list_shards(split))],
        )
    digest = hashlib.sha256()
    for row in rows_of_source(task, split).as_numpy_iterator():
        values = tf.nest.flatten(row, expand_composites=True)
        digest.update(repr([np.asarray(value).tolist() for value in values]).encode())
    return digest.hexdigest()


def _size_and_time(path: str) -> tuple[int, int]:
    """Size in bytes and time in nanoseconds; TensorFlow's own stat has whole seconds only."""
    if Path(path).is_file():
        stat = Path(path).stat()
        return stat.st_size, stat.st_mtime_ns
    stat = tf.io.gfile.stat(path)
    return stat.length, stat.mtime_nsec


def _identity(value: object, seen: dict[int, object]) -> object:
    """The identity of a preprocessor or a value in it: its repr changes when the value does.

    `seen` has the objects that were met before, by id; they may refer to each other.
    """
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    if id(value) in seen:
        return "seen", list(seen).index(id(value))
    seen[id(value)] = value  # kept alive, or another object might get its id
    inside = functools.partial(_identity, seen=seen)
    if isinstance(value, functools.partial):
        return inside(value.func), inside(value.args), inside(value.keywords)
    if isinstance(value, Mapping):
        return [(inside(key), inside(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [inside(part) for part in value]
    if isinstance(value, set | frozenset):
        # Their order depends on PYTHONHASHSEED. Each member is looked at with what was met before
        # the set only, or the numbers of "seen" would depend on that order too.
        return "set", sorted(repr(_identity(part, dict(seen))) for part in value)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tolist()
    if isinstance(value, seqio.Vocabulary):
        return _vocabulary_identity(value)
    if inspect.ismethod(value):
        return inside(value.__func__), inside(value.__self__)
    kind = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    name = str(getattr(kind, "__module__", "")), getattr(kind, "__qualname__", "")
    if name[0].partition(".")[0] == "tensorflow":  # its functions lead to all of its registries
        return name, repr(value) if isinstance(value, tf.Tensor | tf.DType) else ""
    if inspect.isfunction(value):
        # A decorated function is the decorator's, which has captured the original.
        return (
            name,
            _text(value),
            [inside(cell) for cell in value.__closure__ or ()],
            [inside(value.__defaults__), inside(value.__kwdefaults__)],
        )
    if isinstance(value, types.CellType):
        return inside(value.cell_contents) if value != types.CellType() else "empty"
    if kind is value or hasattr(value, "__dict__"):
        return name, _text(kind), [] if kind is value else inside(vars(value))
    return name, "" if type(value).__repr__ is object.__repr__ else repr(value)


def _text(function_or_class: Any) -> str:
    """The hash of its module's text, which includes what it calls; in a notebook its own text."""
    try:
        path = inspect.getsourcefile(function_or_class)
        if path and Path(path).is_file():
            return _module_text(path)
        return inspect.getsource(function_or_class)
    except (OSError, TypeError):
        return ""


@functools.cache
def _module_text(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _vocabulary_identity(vocabulary: seqio.Vocabulary) -> str:
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return hashlib.sha256(vocabulary.sp_model or b"").hexdigest()
    return str(vocabulary)
