"""The key of a cache of tokens: a hash of everything that they depend on.

A source may say itself what its rows are (`fingerprint(split)`, see pemt_jax.tasks.sources); a TFDS
source is its name and version, a source over files their names, sizes and times. Any other is read
through and its rows are hashed, for nothing else tells whether a function would still give the
same. Vocabularies count with their contents, preprocessors with the text of their module, their
arguments and the values that they have captured; what a preprocessor reads from elsewhere is not
seen.
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

import pemt_jax
from pemt_jax.tasks.sources import cached

FORMAT = 2  # part of every key: a change of the files' meaning makes old caches unknown


def cache_key(task: seqio.Task, split: str, lengths: Mapping[str, int]) -> str:
    """Hash of what the tokens of a split depend on."""
    parts = [
        FORMAT,
        pemt_jax.__version__,
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


def _rows_identity(task: seqio.Task, split: str) -> object:
    source = task.source
    if cached.usable(task, split):
        return cached.identity(task, split)
    if fingerprint := getattr(source, "fingerprint", None):
        return fingerprint(split)
    if isinstance(source, seqio.TfdsDataSource):
        splits: Any = source.splits or {}  # here a mapping; the stub knows a tuple only
        return source.tfds_dataset.name, sorted(splits.items())
    if isinstance(source, seqio.FileDataSource):
        return (
            _identity(getattr(source, "_reader", None), {}),
            [(path, *_size_and_time(path)) for path in sorted(source.list_shards(split))],
        )
    digest = hashlib.sha256()
    for row in source.get_dataset(split=split, shuffle=False).as_numpy_iterator():
        values = tf.nest.flatten(row, expand_composites=True)
        digest.update(repr([np.asarray(value).tolist() for value in values]).encode())
    return digest.hexdigest()


def _size_and_time(path: str) -> tuple[int, int]:
    """Bytes and time of a file, in nanoseconds; TensorFlow's own stat tells whole seconds only."""
    if Path(path).is_file():
        stat = Path(path).stat()
        return stat.st_size, stat.st_mtime_ns
    stat = tf.io.gfile.stat(path)
    return stat.length, stat.mtime_nsec


def _identity(value: object, seen: dict[int, object]) -> object:
    """What a preprocessor is, or a value in it: something whose repr changes when that does.

    `seen` holds the objects that were met before, which may hold each other.
    """
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    if id(value) in seen:
        return "seen", list(seen).index(id(value))
    seen[id(value)] = value  # kept, or another object might get its id
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
    if name[0].partition(".")[0] == "tensorflow":  # all of its registries hang on its functions
        return name, repr(value) if isinstance(value, tf.Tensor | tf.DType) else ""
    if inspect.isfunction(value):
        # A decorated function is the decorator's, which has captured the one that is meant.
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
    """The text of its module, for that holds what it calls; in a notebook its own text."""
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
        model = vocabulary.sp_model
        assert model is not None  # it is loaded now
        return hashlib.sha256(model).hexdigest()
    return str(vocabulary)
