import dataclasses
import json

import pytest

from pemt_jax.checkpoints.identity import difference
from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.common.errors import UsageError
from pemt_jax.config import PemtConfig, T5Config


def identity(t5=None, pemt=None, **others):
    """As a manifest holds it: through JSON."""
    full = {
        "method": "pemt_target",
        "experts": [{"name": "nli", "sha256": "a1"}, {"name": "qa", "sha256": "b2"}],
        "t5": dataclasses.asdict(T5Config(**(t5 or {}))),
        "pemt": dataclasses.asdict(PemtConfig(**(pemt or {}))),
        "data": {"mrpc": [1.0, "c3"]},
        "optimizer": {"name": "adamw", "schedule": "0.01"},
    }
    return json.loads(json.dumps(full | others))


def without(identity, part, field):
    return identity | {part: {k: v for k, v in identity[part].items() if k != field}}


@pytest.mark.parametrize(
    ("stored", "expected", "found"),
    [
        (identity(), identity(), None),
        (identity(), identity(t5={"dropout_rate": 0.0}), "t5.dropout_rate is 0.1, expected 0.0"),
        (
            identity(),
            identity(pemt={"expert_rank": 5, "tsl_weight": 0.2}),
            "pemt.expert_rank is 64, expected 5",
        ),
        (
            identity(),
            identity(t5={"mlp_activations": ("gelu", "linear")}),
            "t5.mlp_activations is ['relu'], expected ['gelu', 'linear']",
        ),
        (
            identity(),
            identity(optimizer={"name": "adamw", "schedule": "0.02"}),
            "optimizer.schedule is '0.01', expected '0.02'",
        ),
        (
            identity(),
            identity(experts=[{"name": "nli", "sha256": "a1"}, {"name": "qa", "sha256": "d4"}]),
            "experts[1].sha256 is 'b2', expected 'd4'",
        ),
        (identity(), identity(data={"sst2": [1.0, "c3"]}), "data.mrpc is [1.0, 'c3'], expected "),
        (identity(), identity(seed=1), "seed is absent, expected 1"),
        (identity(seed=None), identity(seed=1), "seed is None, expected 1"),
    ],
)
def test_only_the_first_difference_is_named(stored, expected, found):
    if found is None:
        assert difference(stored, expected) is None
    else:
        assert difference(stored, expected).startswith(found)
        assert len(difference(stored, expected)) < 80


def test_an_empty_stored_optimizer_is_any_optimizer():
    assert difference(identity(optimizer={}), identity()) is None
    assert difference(identity(), identity(optimizer={})) == (
        "optimizer.name is 'adamw', expected absent"
    )
    assert difference(identity(optimizer={}), identity(method="lora")) == (
        "method is 'pemt_target', expected 'lora'"
    )


@pytest.mark.parametrize(
    ("part", "field", "value"), [("t5", "remat_policy", "full"), ("pemt", "tsl_weight", 0.5)]
)
def test_a_field_added_since_counts_as_its_default(part, field, value):
    old = without(identity(), part, field)
    assert difference(old, identity()) is None
    default = getattr({"t5": T5Config, "pemt": PemtConfig}[part], field)
    assert difference(old, identity(**{part: {field: value}})) == (
        f"{part}.{field} is {default!r}, expected {value!r}"
    )
    # One that is known only to the checkpoint is a difference.
    assert difference(identity(), old) == f"{part}.{field} is {default!r}, expected absent"


def test_the_folder_of_another_configuration_is_refused_by_one_field(tmp_path):
    with Checkpoints(tmp_path, identity()) as checkpoints:
        checkpoints.save(1, {"step": 1})
    with pytest.raises(UsageError) as error:
        Checkpoints(tmp_path, identity(t5={"dropout_rate": 0.0}))
    assert str(error.value) == (
        f"{tmp_path} holds the checkpoints of another run, whose t5.dropout_rate is 0.1, expected "
        "0.0 or another MODEL_DIR for this run."
    )
