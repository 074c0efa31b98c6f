"""The key of a cache of tokens: a hash of everything that they depend on.

A source may say itself what its rows are (`fingerprint(split)`, see pemt_jax.tasks.sources); a TFDS
source is its name and version; any other is the text of its function. Preprocessors count with
their names, arguments and program text, vocabularies with their contents.
"""

import functools
import hashlib
import inspect
from collections.abc import Mapping

import seqio

import pemt_jax
from pemt_jax.tasks import cached

FORMAT = 1  # part of every key: a change of the files' meaning makes old caches unknown


def cache_key(task: seqio.Task, split: str, lengths: Mapping[str, int]) -> str:
    """Hash of what the tokens of a split depend on."""
    parts = [FORMAT, pemt_jax.__version__, task.name, split, sorted(lengths.items()),
             _rows_identity(task, split)]
    parts += [_step_identity(step) for step in task.preprocessors]
    parts += [(name, feature.add_eos, _vocabulary_identity(feature.vocabulary))
              for name, feature in sorted(task.output_features.items())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _rows_identity(task: seqio.Task, split: str) -> object:
    source = task.source
    if cached.usable(task, split):
        return cached.identity(task, split)
    if hasattr(source, "fingerprint"):
        return source.fingerprint(split)
    if isinstance(source, seqio.TfdsDataSource):
        return source.tfds_dataset.name, sorted((source.splits or {}).items())
    return type(source).__name__, _step_identity(getattr(source, "_dataset_fn", source))


def _step_identity(step: object) -> object:
    """Name, arguments and program text of a preprocessor."""
    if isinstance(step, functools.partial):
        arguments = [*enumerate(step.args), *sorted(step.keywords.items())]
        return _step_identity(step.func), [
            (name, _step_identity(value) if callable(value) else repr(value))
            for name, value in arguments]
    subject = inspect.unwrap(step) if inspect.isfunction(step) else type(step)
    try:
        text = inspect.getsource(subject)
    except (OSError, TypeError):
        text = ""
    return getattr(subject, "__module__", ""), getattr(subject, "__qualname__", ""), text


def _vocabulary_identity(vocabulary: seqio.Vocabulary) -> str:
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return hashlib.sha256(vocabulary.sp_model).hexdigest()
    return str(vocabulary)
