"""mT5, umT5 and ByT5 from a Hugging Face folder to a target model, by every command."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_system import T5, random_base, world_fixture  # noqa: F401
from tiny_vocabulary import with_sentinels_inside

from pemt_jax import convert
from pemt_jax.common.errors import UsageError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.evaluate import evaluate
from pemt_jax.interop.base import load_base
from pemt_jax.predict import predict
from pemt_jax.tasks.vocabulary import PACKAGED, Vocabulary, beside

GATED = dataclasses.replace(T5, mlp_activations=("gelu", "linear"), logits_via_embedding=False)
SHAPES = {
    "mt5": dataclasses.replace(GATED, vocab_size=8112),
    "umt5": dataclasses.replace(
        GATED, vocab_size=8384, num_encoder_layers=2, relpos_per_layer=True
    ),
    "byt5": dataclasses.replace(GATED, vocab_size=384, num_encoder_layers=2),
}
BYTE_LENGTHS = {"task_feature_lengths": {"inputs": 48, "targets": 12}, "buckets": (48,)}


def write_vocabulary(family: str, folder: Path) -> None:
    facts = {"tokenizer_class": "T5Tokenizer", "extra_ids": {"mt5": 0, "umt5": 300}.get(family)}
    if family == "byt5":
        facts = {"tokenizer_class": "ByT5Tokenizer"}
    elif family == "mt5":
        (folder / "spiece.model").write_bytes(with_sentinels_inside())
    else:
        (folder / "spiece.model").write_bytes(PACKAGED.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("family", SHAPES)
def test_train_evaluate_predict_and_convert(world, tmp_path, family, scan_layers):  # noqa: F811
    start = random_base(tmp_path / "start", SHAPES[family])
    write_vocabulary(family, start)
    common = {"steps": 2, "scan_layers": scan_layers, "library": str(tmp_path / "library")}
    common |= BYTE_LENGTHS if family == "byt5" else {}
    world.train(tmp_path / "full", method="full", initial_checkpoint_path=str(start), **common)
    base = tmp_path / "full" / "base"
    assert Vocabulary(beside(base)) == Vocabulary(beside(start))
    assert load_base(base)[0] == SHAPES[family]
    common["initial_checkpoint_path"] = str(base)
    world.train(tmp_path / "expert", method="pemt_source", expert_name="mood", **common)
    world.train(tmp_path / "target", experts=("mood",), **common)
    metrics = evaluate(model_dir=str(tmp_path / "target"), batch_size=8)
    assert metrics["gate/mood"] == pytest.approx(1)
    (tmp_path / "in.txt").write_text("mood: the good film\n")
    for model in ("target", "full"):
        out = tmp_path / f"{model}.jsonl"
        files = {"input_file": str(tmp_path / "in.txt"), "output_file": str(out)}
        predict(model_dir=str(tmp_path / model), batch_size=1, **files)
        assert json.loads(out.read_text())["log_probability"] < 0
    for source, target, form in ((base, "t5x", "t5x"), (tmp_path / "t5x", "back", "hf")):
        flags = ["--from", str(source), "--to", str(tmp_path / target), "--format", form]
        assert convert.main(flags) == 0
        assert Vocabulary(beside(tmp_path / target)) == Vocabulary(beside(start))
        assert fingerprint(load_base(tmp_path / target)[1]) == fingerprint(load_base(base)[1])
    # The target depends on the base's numbers, wherever and however they are stored.
    elsewhere = str(tmp_path / "t5x")
    again = evaluate(
        model_dir=str(tmp_path / "target"), batch_size=8, initial_checkpoint_path=elsewhere
    )
    assert again == metrics


@pytest.mark.slow
def test_a_byt5_is_trained_on_bytes(world, tmp_path):  # noqa: F811
    base = random_base(tmp_path / "base", SHAPES["byt5"])
    options = {"method": "pemt_source", "initial_checkpoint_path": str(base), "steps": 2}
    options |= BYTE_LENGTHS | {"library": str(tmp_path / "library")}
    with pytest.raises(
        UsageError, match=r"has no tokenizer, expected .* \('bytes' for a ByT5\)\.$"
    ):
        world.train(tmp_path / "run", **options)
    write_vocabulary("byt5", base)
    world.train(tmp_path / "run", **options)
    card = json.loads((tmp_path / "run" / "artefact" / "card.json").read_text())
    assert card["config"]["vocabulary"] == Vocabulary("bytes").sha256
    assert card["config"]["t5"].keys().isdisjoint({"relpos_per_layer", "scale_decoder_outputs"})
