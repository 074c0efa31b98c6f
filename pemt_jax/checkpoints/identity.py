"""Whether a folder's checkpoints belong to the run that opens it.

The identity of a run says what it is (base, experts, method, task, optimizer, ...), as JSON values.
It is stored in every manifest; a folder with another identity is refused.
"""

import dataclasses
import json
from collections.abc import Mapping

from pemt_jax.config import PemtConfig, T5Config

BASE_REVISION = "base_revision"  # of a base on the hub; the weights themselves are in "base"
_CONFIGURATIONS = {"t5": T5Config, "pemt": PemtConfig}
_ABSENT = object()


def difference(stored: Mapping, expected: Mapping) -> str | None:
    """Return the first difference of two identities, "t5.dropout_rate is 0.1, expected 0.0".

    None when they describe the same run. A field that a configuration did not have when `stored`
    was written counts as its default, and an empty stored optimizer, which runs started from Python
    once wrote, as any optimizer. Where the base came from is no difference.
    """
    return _first("", _completed(stored, expected), expected)


def _completed(stored: Mapping, expected: Mapping) -> dict:
    completed = {name: value for name, value in stored.items() if name != BASE_REVISION}
    if BASE_REVISION in expected:
        completed[BASE_REVISION] = expected[BASE_REVISION]
    if stored.get("optimizer") == {} and "optimizer" in expected:
        completed["optimizer"] = expected["optimizer"]
    for name, configuration in _CONFIGURATIONS.items():
        if isinstance(stored.get(name), Mapping) and isinstance(expected.get(name), Mapping):
            # Through JSON, as the identities are: tuples are lists there.
            defaults = json.loads(json.dumps(dataclasses.asdict(configuration())))
            known = {key: defaults[key] for key in expected[name] if key in defaults}
            completed[name] = known | dict(stored[name])
    return completed


def _first(path: str, found, expected) -> str | None:
    if found == expected:
        return None
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        parts = [
            (f"{path}.{key}" if path else key, found.get(key, _ABSENT), expected.get(key, _ABSENT))
            for key in sorted(found.keys() | expected.keys())
        ]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        parts = [
            (f"{path}[{i}]", *pair) for i, pair in enumerate(zip(found, expected, strict=True))
        ]
    else:
        return f"{path} is {_text(found)}, expected {_text(expected)}"
    return next(filter(None, (_first(*part) for part in parts)))


def _text(value) -> str:
    return "absent" if value is _ABSENT else repr(value)
