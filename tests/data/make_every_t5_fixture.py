"""Make tests/data/every_t5.tar.gz: tiny random T5s of every family, as transformers 4 and 5 write
and compute them, and the tokens of their tokenizers.

Run once with version 4 and then with version 5, each in an environment of its own, FOLDER shared:

    pip install torch==2.13.0 transformers==4.57.6 numpy sentencepiece protobuf    # then 5.24.0
    python tests/data/make_every_t5_fixture.py FOLDER
    tar --sort=name --owner=0 --group=0 --mtime=@0 -C FOLDER -cz . > tests/data/every_t5.tar.gz

FOLDER/4 and FOLDER/5 get one folder per model with its logits and loss, FOLDER/4_in_5 the models of
version 4 as version 5 loads and saves them. The tests need neither package. Numbers are multiples
of 1/64, so that the archive is small.
"""

import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers
from sentencepiece import sentencepiece_model_pb2

VERSION = transformers.__version__.partition(".")[0]
PACKAGED = Path(__file__).parents[2] / "pemt_jax" / "assets" / "mini_t5" / "spiece.model"
SIZES = {
    "vocab_size": 40,
    "d_model": 12,
    "d_kv": 5,
    "num_heads": 2,
    "d_ff": 14,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}
UNTIED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MODELS = {
    "t5_1_0": ("T5", {}),
    "t5_1_1": ("T5", UNTIED),  # also LM-adapted and FLAN
    "ul2": ("T5", UNTIED | {"feed_forward_proj": "gated-silu"}),
    "relu_gated": ("T5", UNTIED | {"feed_forward_proj": "gated-relu"}),
    "byt5": (
        "T5",
        UNTIED
        | {"vocab_size": 384, "num_layers": 3, "num_decoder_layers": 1}
        | {"tokenizer_class": "ByT5Tokenizer"},
    ),
    "mt5": ("MT5", {}),
    "mt5_tied": ("MT5", {"tie_word_embeddings": True}),
    "umt5": ("UMT5", {"tie_word_embeddings": False, "num_decoder_layers": 3}),
    "umt5_tied": ("UMT5", {"num_decoder_layers": 3}),
}
TEXTS = (
    "A good film tells its story.",
    "It's  5 \u00bd na\u00efve\t\u4e2d\u6587 \U0001f600 end. ",
    "<extra_id_0> and <extra_id_99> a film",
    " ",
    "",
    "\u2581a",
)


def randomize(model) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=1.0 if "relative_attention" in name else weight.shape[-1] ** -0.5)
            if name.endswith(".q.weight"):
                weight.mul_(SIZES["d_kv"] ** -0.5)  # as T5's own, for its scores are not scaled
            if "layer_norm" in name:
                weight.mul_(0.7).add_(1.0)
            weight.mul_(64).round_().div_(64)


def expect(model, folder: Path) -> None:
    """Write inputs, targets, and logits and loss in float64, whose rounding is not compared."""
    random = np.random.default_rng(0)
    rows = model.config.vocab_size
    inputs, targets = random.integers(2, rows, (2, 30)), random.integers(2, rows, (2, 6))
    inputs[1, 19], inputs[1, 20:], targets[1, 3], targets[1, 4:] = 1, 0, 1, 0
    with torch.no_grad():
        found = model.double().eval()(
            input_ids=torch.tensor(inputs),
            attention_mask=torch.tensor(inputs > 0).long(),
            labels=torch.tensor(np.where(targets > 0, targets, -100)),
        )
    np.savez_compressed(
        folder / "expected.npz",
        inputs=inputs,
        targets=targets,
        logits=found.logits.numpy()[targets > 0].astype(np.float32),
        loss=found.loss.item(),
    )


def save(model, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    keys = ("tie_word_embeddings", "scale_decoder_outputs", "tokenizer_class")
    print(folder, {key: config.get(key) for key in keys})


def tokens(folder: Path) -> None:
    """Write the tokens of both vocabularies of mT5, and of ByT5, by this version's tokenizers."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(PACKAGED.read_bytes())
    found = {}
    for name, extra_ids in (("sentinels_added", 100), ("sentinels_inside", 0)):
        if name == "sentinels_inside":  # as in T5X's mc4.250000.100extra
            for i in reversed(range(100)):
                proto.pieces.add(piece=f"\u2581<extra_id_{i}>", score=0.0, type=4)
            proto.trainer_spec.vocab_size = len(proto.pieces)
        place = folder / "tokenizers" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "spiece.model").write_bytes(proto.SerializeToString(deterministic=True))
        assert sentencepiece.SentencePieceProcessor(model_file=str(place / "spiece.model"))
        made = transformers.T5Tokenizer.from_pretrained(place, extra_ids=extra_ids)
        found[name] = [made(text).input_ids for text in TEXTS]
        (place / "spiece.model").unlink()
        place.rmdir()
    (folder / "tokenizers").rmdir()
    made = transformers.ByT5Tokenizer()
    found["bytes"] = [made(text).input_ids for text in TEXTS if "<" not in text]
    text = json.dumps({"texts": TEXTS, "tokens": found}, indent=1)
    (folder / f"tokens_{VERSION}.json").write_text(text + "\n")


def main(folder: Path) -> None:
    for number, (name, (family, settings)) in enumerate(MODELS.items()):
        kind = getattr(transformers, f"{family}ForConditionalGeneration")
        config = getattr(transformers, f"{family}Config")(**SIZES | settings)
        torch.manual_seed(100 + number)
        model = kind(config)
        randomize(model)
        save(model, folder / VERSION / name)
        expect(model, folder / VERSION / name)
        if VERSION == "5":
            model = kind.from_pretrained(folder / "4" / name)
            save(model, folder / "4_in_5" / name)
            expect(model, folder / "4_in_5" / name)
    tokens(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
