"""Every method runs in the one harness: it is trained, published, opened again and evaluated."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_system import EXPERTS, OPTIONS, world_fixture  # noqa: F401

from pemt_jax import evaluate, predict
from pemt_jax.common.errors import UsageError

MIXED = {"experts": EXPERTS}
FROM = {"initial_expert": "tiny_topic"}
CASES = {  # name: (method, other arguments, fields of PemtConfig)
    "bitfit": ("bitfit", {}, {}),
    "ia3": ("ia3", {}, {}),
    "norms": ("norms", {}, {}),
    "prompt_tuning": ("prompt_tuning", {}, {}),
    "spot": ("prompt_tuning", FROM, {}),
    "mpt": ("mpt", FROM, {}),
    "attempt": ("attempt", MIXED, {}),
    "mixture": ("mixture", MIXED, {}),
    "own": ("pemt_target", MIXED, {"prompt_mixing": "own"}),
    "uniform": ("pemt_target", MIXED, {"gate": "uniform"}),
    "constant": ("pemt_target", MIXED, {"gate": "constant"}),
    "top1": ("pemt_target", MIXED, {"gate_top_k": 1}),
    "shared": ("pemt_target", MIXED, {"gate": "shared"}),
    "token": ("pemt_target", MIXED, {"gate": "token"}),
    "none": ("pemt_target", MIXED, {"gate": "none"}),
    "arrow": ("mixture", MIXED, {"gate": "arrow", "gate_top_k": 1}),
}
QUICK = ("ia3",)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_a_method_is_trained_published_and_evaluated(world, tmp_path, name):
    method, arguments, fields = CASES[name]
    options = dataclasses.replace(OPTIONS, **fields)
    assert world.library
    trained = world.train(tmp_path, steps=10, method=method, options=options, **arguments)
    card = json.loads((tmp_path / "artefact" / "card.json").read_text())
    assert card["method"] == method and card["kind"] == "target"
    found = evaluate.evaluate(model_dir=str(tmp_path), split="validation", batch_size=8)
    for metric in ("loss", "accuracy"):
        np.testing.assert_allclose(found[metric], trained[metric], rtol=1e-5, err_msg=metric)
    gates = [found[f"gate/{expert}"] for expert in EXPERTS if f"gate/{expert}" in found]
    gated = method in ("pemt_target", "mixture") and name != "none"
    assert len(gates) == (2 if gated else 0)
    assert not gates or abs(sum(gates) - 1) < 1e-5
    (tmp_path / "in.txt").write_text("mood: the good film\n")
    out = tmp_path / "out.jsonl"
    predict.predict(
        model_dir=str(tmp_path), input_file=str(tmp_path / "in.txt"), output_file=str(out)
    )
    assert len(json.loads(out.read_text()).get("gate", ())) == len(gates)


def test_a_method_that_trains_no_prompt_of_its_own_starts_from_no_expert(world, tmp_path):
    with pytest.raises(UsageError, match="'ia3' trains no expert .* 'prompt_tuning' or 'mpt'"):
        world.train(tmp_path, method="ia3", initial_expert="tiny_mood")


@pytest.mark.slow
def test_a_job_of_prompts_of_different_lengths_is_refused_where_padding_would_change_them(
    world, tmp_path
):
    tasks, texts = ("tiny_mood", "tiny_topic"), ("Say it.", "Say what the text is about.")
    with pytest.raises(UsageError, match="different lengths .* 'product', expected one length"):
        world.train(tmp_path, tasks, method="mpt", prompt_text=texts)
