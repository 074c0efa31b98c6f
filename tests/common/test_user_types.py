"""A value against the annotation of the field that it is for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pemt_jax.common.errors import UsageError
from pemt_jax.common.user_input.types import check, expected
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.optimizers import Transformation, make_optimizer

GOOD = [
    (3, int),
    (np.int64(3), int),
    (3, float),
    (np.float32(3), float),
    ("a", str | None),
    (None, str | None),
    (True, bool),
    ((1, 2), Sequence[int]),
    ([[1, 2], [3, 4]], Sequence[int] | Sequence[Sequence[int]]),
    ({"a": 1}, Mapping[str, int]),
    (len, Callable[..., int]),
    (make_optimizer(), Transformation),
    (object(), Any),
    (PemtConfig(), PemtConfig | None),
]
WRONG = [
    (True, int, "a whole number"),
    (3.0, int, "a whole number"),
    ("3", float, "a number"),
    (3, str, "a text"),
    ([3], str | Sequence[str], "a text or a list of texts"),
    ("abc", Sequence[str], "a list of texts"),
    ({"a": "b"}, Mapping[str, int], "a dictionary"),
    ({}, PemtConfig | None, "PemtConfig or None"),
    ("adamw", Transformation, "an optimizer, such as @optimizers.make_optimizer()"),
    (1, bool, "True or False"),
    ("x", Callable[..., int], "a function"),
]


@pytest.mark.parametrize("value, hint", GOOD)
def test_what_fits_is_accepted(value, hint):
    check("x", value, hint)


@pytest.mark.parametrize("value, hint, found", WRONG)
def test_what_does_not_is_named_in_words(value, hint, found):
    with pytest.raises(UsageError) as caught:
        check("X", value, hint)
    assert str(caught.value) == f"Found X {value!r}, expected {found}."


def test_members_are_left_to_others_where_they_say_more():
    assert expected([3], Sequence[str], members=False) == ""
    assert expected("abc", Sequence[str], members=False) == "a list of texts"


@pytest.mark.parametrize(
    "make, found",
    [
        (lambda: PemtConfig(expert_linears=(3,)), "Found PemtConfig.expert_linears"),
        (lambda: PemtConfig(expert_rank="four"), "Found PemtConfig.expert_rank 'four'"),
        (lambda: T5Config(dtype=["float32"]), "Found T5Config.dtype"),
        (lambda: T5Config(scan_layers=[]), "Found T5Config.scan_layers"),
    ],
)
def test_the_configurations_of_a_model_check_their_fields(make, found):
    with pytest.raises(UsageError, match=found):
        make()
