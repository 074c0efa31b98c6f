"""A base folder: its config.json, its tokenizer, its SHA256SUMS, and files that torch wrote."""

import base64
import json
import pickle
import zipfile

from case import WEIGHTS, Case, case, copy, cut, edit, fields, fifo, flip, link, mode, train

CONVERT = "convert --from base --to out --format t5x"
DEEP = "[" * 100_000 + "]" * 100_000


def base(name: str, changes: dict, *says: str, code=1, without=(), **more) -> Case:
    return case(name, CONVERT, *says, code=code, files={
        "base": copy("$BASE", changes, without)}, **more)  # fmt: skip


def config(name: str, change: object, *says: str, **more) -> Case:
    return base(f"config.json: {name}", {"config.json": change}, *says, **more)


def tokenizer(name: str, content: object, *says: str, code=(1, 2)) -> Case:
    """The tiny base with a tokenizer.json in place of its spiece.model, trained on."""
    files = {"base": copy("$BASE", {"tokenizer.json": content}, without=("spiece.model",))}
    macros = {"INITIAL_CHECKPOINT_PATH": "base"}
    return train(f"tokenizer.json: {name}", *says, code=code, macros=macros, files=files)


def model(name: str, change: object, *says: str) -> Case:
    """The same with another spiece.model."""
    return train(f"spiece.model: {name}", *says, code=(1, 2), files={
        "base": copy("$BASE", {"spiece.model": change})}, macros={
        "INITIAL_CHECKPOINT_PATH": "base"})  # fmt: skip


SIZES = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers", "num_decoder_layers",
         "relative_attention_num_buckets", "relative_attention_max_distance")  # fmt: skip
VALUES = {
    **dict.fromkeys(SIZES, (0, -1, 1.5, "16", True, [16], {}, 10**9, 10**400)),
    "model_type": (3, None, "bert", "gpt2", "longt5", [], ""),
    "layer_norm_epsilon": (0, 1e-5, "1e-6", None, [], 10**400),
    "dropout_rate": (-1, 1, "x", [], 1e400, 10**400),
    "feed_forward_proj": (3, "swiglu", "gated-gated-gelu", [], ""),
    "dense_act_fn": (3, "tanh", [], ""),
    "is_gated_act": ("x", 3),
    "tie_word_embeddings": ("no", 0),
}
CONTENT = {
    "empty": "", "half": "{", "null": "null", "a list": "[]", "a text": '"t5"', "deep": DEEP,
    "an empty object": "{}", "latin-1": b'{"a": "\xe7"}', "UTF-16": "{}".encode("utf-16"),
    "zeros": bytes(99), "single quotes": "{'model_type': 't5'}", "a comment": "// x\n{}",
    "a pipe": fifo, "a link to nothing": link("nothing"), "a link to itself": link("config.json"),
    "no permission": mode(0, "{}"), "a folder": mode(0o755, {"x": ""}),
}  # fmt: skip
TABLE = base64.b64encode(bytes(8)).decode()
GOOD = {
    "model": {"type": "Unigram", "unk_id": 2, "vocab": [
        ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["x", -1.0]]},
    "added_tokens": [{"id": 0, "special": True}],
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": TABLE},
}  # fmt: skip


def without(name: str) -> str:
    return json.dumps({key: value for key, value in GOOD.items() if key != name})


def other(**values: object) -> str:
    """The tokenizer with other parts; `vocab`, `type` and `unk_id` are of its model."""
    of_model = {key: values.pop(key) for key in ("vocab", "type", "unk_id") if key in values}
    return json.dumps({**GOOD, "model": {**GOOD["model"], **of_model}, **values})


PIECES = (None, 3, "x", {}, [], [3], ["x"], [["x"]], [["x", 1.0, 2]], [[3, 1.0]], [["x", "y"]],
          [["x", None]], [[None, 1.0]], [["x", 1e400]], [["\ud800", 1.0]], [[]], [["", 0.0]],
          [["x", 0.0], ["x", 0.0], ["x", 0.0]])  # fmt: skip


class Payload:
    """Executed when it is unpickled by somebody careless."""

    def __reduce__(self):
        return exec, ("import os; open(os.environ.get('FUZZ_CANARY', 'canary'), 'w').close()",)


def zipped(path, places) -> None:
    """A .bin as torch writes it, with the payload in place of the tensors."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"shared.weight": Payload()}))
        file.writestr("archive/version", "3\n")


BIN = "pytorch_model.bin"
TORCH = {
    "a pickle that executes": pickle.dumps({"shared.weight": Payload()}),
    "an archive that executes": zipped,
    "a text": "no pickle\n",
    "empty": "",
    "half a pickle": pickle.dumps({"a": [1.0] * 100})[:50],
    "half an archive": b"PK\x03\x04" + bytes(100),
    "a pickle of a list": pickle.dumps([1, 2]),
    "a pipe": fifo,
    "a link to nothing": link("nothing"),
    "no permission": mode(0, "x"),
}
CANARY = {"FUZZ_CANARY": "$CANARY"}
SUMS = "SHA256SUMS"

CASES = [
    *(
        config(f"{name} = {str(value)[:30]}{type(value).__name__}", fields(**{name: value}),
               f"{name}|shape|unsupported|memory|missing|activation|own|relpos|logits", code=(1, 2))
        for name, values in VALUES.items()
        for value in values
        if (name, value) != ("layer_norm_epsilon", 1e-6)
    ),
    *(
        config(f"without {name}", fields(removed=(name,)), name)
        for name in ("vocab_size", "d_model", "num_heads", "d_ff", "num_layers")
    ),
    *(config(name, content, "config.json") for name, content in CONTENT.items()),
    *(tokenizer(f"without {name}", without(name), "tokenizer.json") for name in GOOD),
    *(tokenizer(f"pieces {str(value)[:30]!r}", other(vocab=value),
        "tokenizer.json|entries|vocab") for value in PIECES),
    *(
        tokenizer(f"{name} = {str(value)[:60]}", other(**{name: value}),
            "tokenizer.json|entries|vocab")
        for name, values in {
            "type": (None, "BPE", "WordPiece", 3),
            "unk_id": (None, "x", -1, 1.5, 10**9, True),
            "added_tokens": (None, 3, [3], [{}], [{"id": 0}], {}),
            "normalizer": (None, 3, {}, {"type": "NFC"}, {"type": "Sequence", "normalizers": 3},
                           {"type": "Precompiled", "precompiled_charsmap": "%%%"},
                           {"type": "Precompiled", "precompiled_charsmap": 3},
                           {"type": "Precompiled"}),
        }.items()
        for value in values
    ),
    *(tokenizer(name, content, "tokenizer.json|spiece") for name, content in CONTENT.items()),
    model("empty", "", "spiece.model"),
    model("a text", "no model\n", "spiece.model"),
    model("cut short", cut(0.5), "spiece.model"),
    model("one bit flipped at the start", flip(0), "spiece.model"),
    model("a byte more", edit(lambda old: old + b"\0"), "spiece.model|VOCABULARY"),
    model("a pipe", fifo, "spiece.model"),
    model("a link to nothing", link("nothing"), "spiece.model"),
    model("no permission", mode(0, "x"), "spiece.model"),
    model("a folder", mode(0o755, {"x": ""}), "spiece.model"),
    train("a base without a tokenizer has the mini T5's, if its rows are as many", code=0,
          macros={"INITIAL_CHECKPOINT_PATH": "base", "TRAIN_STEPS": 1}, may=("run*", "library*"),
          files={"base": copy("$BASE", without=("spiece.model",))}),
    *(
        base(f"{BIN}: {name}", {BIN: content}, "", without=(WEIGHTS,), environment=CANARY)
        for name, content in TORCH.items()
    ),
    base("SHA256SUMS of other bytes", {SUMS: f"{'0' * 64}  {WEIGHTS}\n"}, WEIGHTS, SUMS),
    *(
        base(f"SHA256SUMS {name} is a stranger's and not read", {SUMS: text}, code=0,
             prints=True, may=("out", "out/*"))
        for name, text in {
            "that is no such list": "nonsense\n",
            "of a file outside": f"{'0' * 64}  ../../etc/passwd\n",
            "in latin-1": b"\xe7\n",
        }.items()
    ),
    base("SHA256SUMS that is a pipe", {SUMS: fifo}, SUMS),
    base("SHA256SUMS that is a folder", {SUMS: mode(0o755, {"x": ""})}, SUMS),
    base("no weights", {}, WEIGHTS, without=(WEIGHTS,)),
    base("weights of other shapes", {"config.json": fields(d_ff=64)}, "shape"),
]  # fmt: skip
