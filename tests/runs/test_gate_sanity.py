"""What a trained gate does where the right answer is known, with the numbers that we found.

The experts are of a T5 that has seen both tasks for 40 steps: `tiny_mood`, which solves its task,
`tiny_topic`, `noise`, random but of the norms of tiny_mood, and `twin`, a copy of tiny_mood. Each
target is trained for 60 steps on one of the two tasks. Without the sparsity loss it is the task's
own loss alone that moves the gate.
"""

import dataclasses

import pytest
from tiny_system import OPTIONS, optimizer, world_fixture  # noqa: F401

from pemt_jax.library.combination import Combination
from pemt_jax.library.combine import combine_experts, random_expert

pytestmark = pytest.mark.slow
STEPS = 60


@pytest.fixture
def library(world):
    """Experts that are better than those of the tiny system, which are trained for 20 steps."""
    folder = world.folder / "sanity"
    if not folder.exists():
        for task in ("tiny_mood", "tiny_topic"):
            world.train(
                world.folder / "sanity_runs" / task,
                task,
                300,
                method="pemt_source",
                library=str(folder),
                optimizer=optimizer(0.03),
                eval_every=100,
            )
        random_expert(folder, "noise", "tiny_mood", seed=1)
        combine_experts(folder, "twin", ["tiny_mood"], Combination("cat", (1.0,)))
    return folder


@pytest.fixture
def gates(world, library, tmp_path):
    """A function that trains a target and returns the mean gates on its validation split."""

    def train(experts, task="tiny_mood", method="pemt_target", **options):
        metrics = world.train(
            tmp_path,
            task,
            STEPS,
            method=method,
            library=str(library),
            experts=experts,
            options=dataclasses.replace(OPTIONS, **options),
            eval_every=STEPS,
        )
        return {expert: metrics[f"gate/{expert}"] for expert in experts}

    return train


@pytest.mark.parametrize(
    ("task", "tsl_weight", "least"),
    [  # found: 0.986, 0.983, 0.973, 0.856
        ("tiny_mood", 0.1, 0.95),
        ("tiny_mood", 0.0, 0.95),
        ("tiny_topic", 0.1, 0.9),
        ("tiny_topic", 0.0, 0.7),
    ],
)
def test_the_gate_goes_to_a_source_that_equals_the_target(gates, task, tsl_weight, least):
    found = gates(("tiny_topic", "tiny_mood"), task, tsl_weight=tsl_weight)
    assert found[task] > least


@pytest.mark.parametrize(
    ("options", "most"),
    [  # found: 0.010, 0.021, 0.039, 0.046, 0.000, 0.329
        ({"tsl_weight": 0.1}, 0.05),
        ({}, 0.1),
        ({"gate": "token"}, 0.1),
        ({"gate": "shared"}, 0.1),
        ({"gate_top_k": 1}, 0.01),
        ({"gate": "constant"}, 0.4),  # a logit moves by at most the rate per step
    ],
    ids=str,
)
def test_the_gate_leaves_a_random_expert(gates, options, most):
    found = gates(("noise", "tiny_mood"), **{"tsl_weight": 0.0, **options})
    assert found["noise"] < most


def test_tokens_are_routed_to_the_expert_that_enlarges_them(gates):
    """Arrow trains no gate. Found: 0.364 for a random expert of the same norms."""
    found = gates(("noise", "tiny_mood"), gate="arrow", gate_top_k=1, tsl_weight=0.0)
    assert found["noise"] < 0.45


@pytest.mark.parametrize("tsl_weight", [0.0, 0.1])
def test_two_equal_experts_share_what_one_would_get(gates, tsl_weight):
    """Found: 0.492 and 0.494 each, which is half of what the one expert got above."""
    found = gates(("twin", "tiny_mood", "tiny_topic"), tsl_weight=tsl_weight)
    assert abs(found["twin"] - found["tiny_mood"]) < 1e-4
    assert found["twin"] + found["tiny_mood"] > 0.95
