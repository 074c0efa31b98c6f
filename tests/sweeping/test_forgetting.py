"""Forgetting: measured of what was chosen and of the base, once each, and right on real runs."""

import json

import pytest
import tiny_system
from tiny_sweep import config, lines, pretend, sweep
from tiny_system import world_fixture  # noqa: F401

from pemt_jax.common.errors import PemtError
from pemt_jax.evaluate import evaluate
from pemt_jax.sweeping.running import run_sweep


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("".join(f"Some people said in {1900 + i} that it rained.\n" for i in range(40)))
    return file


@pytest.fixture
def made(tmp_path, text):
    """Make the configuration of a sweep that measures forgetting; its base scores 50."""
    file = tmp_path / "target.gin"
    file.write_text("train.train.seed = 0\n")
    values = {"file": file, "forgetting_text": str(text)}
    return lambda **more: config(tmp_path / "sweep", **values | more)


def by_rate(flags):
    return {"0.0": 50.0, "0.01": 61.0, "0.03": 64.0}[flags["LEARNING_RATE"]] + int(flags["SEED"])


def test_what_was_chosen_and_the_base_are_measured_after_the_tests(made, tmp_path):
    calls = pretend(made(), by_rate)
    kinds = [(module, name.partition("-")[0]) for module, name in calls]
    own = [("train", "adapter")] * 4 + [("evaluate", "adapter")] * 2
    assert kinds == [*own, ("train", "base"), ("evaluate", "base"), *[("evaluate", "adapter")] * 2]
    found = [(row["chosen"], row["general_loss"], row["forgetting"])
             for row in lines(tmp_path / "sweep")]  # fmt: skip
    assert found[:2] == [(False, None, None)] * 2
    assert found[2:] == [(True, 3.64, 3.64 - 3.5), (True, 3.65, 3.65 - 3.5)]
    assert pretend(made(), by_rate) == []


def test_a_sweep_that_is_killed_meanwhile_has_the_same_results(made, tmp_path):
    pretend(made(), by_rate)
    expected = (tmp_path / "sweep" / "results.jsonl").read_bytes()
    for after in range(6, 10):
        (tmp_path / "sweep").rename(tmp_path / f"before{after}")
        with pytest.raises(KeyboardInterrupt):
            pretend(made(), by_rate, stop_after=after)
        assert len(pretend(made(), by_rate)) == 10 - after
        assert (tmp_path / "sweep" / "results.jsonl").read_bytes() == expected


def test_another_text_is_measured_anew_and_without_one_nothing_is(made, tmp_path, text):
    pretend(made(), by_rate)
    text.write_text("Another text.\n")
    assert [module for module, _ in pretend(made(), by_rate)] == ["evaluate"] * 3
    assert pretend(made(forgetting_text=None), by_rate) == []
    assert {row["forgetting"] for row in lines(tmp_path / "sweep")} == {None}


def test_a_text_that_cannot_be_measured_fails_the_command_and_no_run(made, tmp_path):
    with pytest.raises(PemtError, match="The forgetting of base-.* was not measured: There is no"):
        pretend(made(), by_rate, unreadable=True)
    rows = lines(tmp_path / "sweep")
    assert {(row["state"], row["forgetting"]) for row in rows} == {("finished", None)}
    assert [row["chosen"] for row in rows] == [bool(row["test"]) for row in rows]
    assert len(pretend(made(), by_rate)) == 3


def test_shards_share_the_measurements(made, tmp_path):
    calls = [call for i in range(3) for call in pretend(made(shard=f"{i}/3"), by_rate)]
    calls += pretend(made(), by_rate)
    assert len(calls) == len(set(calls)) + 2 == 10  # each run is evaluated on two texts
    assert None not in [row["forgetting"] for row in lines(tmp_path / "sweep") if row["chosen"]]


def test_a_dry_run_shows_the_base_too(made, capsys):
    run_sweep(made(dry_run=True))
    out = capsys.readouterr().out
    assert out.count("python -m pemt_jax.train") == 5 and "--gin.METHOD=norms" in out
    assert "4 runs in 4 jobs" in out


@pytest.mark.slow
def test_what_changes_nothing_forgets_nothing(world, tmp_path, text):
    """Biases of zero: the same cross entropy as the base to the last bit; trained, another."""
    losses = {}
    for name, method, rate in (
        ("base", "norms", 0.0),
        ("zero", "bitfit", 0.0),
        ("trained", "bitfit", 0.1),
    ):
        world.train(tmp_path / name, steps=1, method=method, optimizer=tiny_system.optimizer(rate))
        losses[name] = evaluate(model_dir=str(tmp_path / name), general_text=str(text))
    assert losses["zero"]["cross_entropy"] - losses["base"]["cross_entropy"] == 0.0
    assert losses["trained"]["cross_entropy"] != losses["base"]["cross_entropy"]


@pytest.mark.slow
def test_full_fine_tuning_forgets(world, tmp_path, text):
    asked = config(
        tmp_path / "sweep",
        world.gin_file,
        methods=("full",),
        base=str(world.base),
        steps=60,
        seeds=(0,),
        rates=(0.01,),
        forgetting_text=str(text),
    )
    sweep(asked)
    (row,) = lines(tmp_path / "sweep")
    assert row["forgetting"] > 0.1 and row["test"]
    (place,) = (tmp_path / "sweep" / "runs").glob(
        "base-*/evaluation/general_text_*-validation.json"
    )
    base = json.loads(place.read_text())
    assert row["general_loss"] - row["forgetting"] == pytest.approx(base["cross_entropy"])
    alone = evaluate(model_dir=str(world.base), general_text=str(text))  # the base itself
    assert alone["cross_entropy"] == base["cross_entropy"]
