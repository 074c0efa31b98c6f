"""T5X checkpoints, PEFT adapters and files of the authors' code, from anywhere."""

from case import Case, case, copy, cut, edit, fields, fifo, flip, link, mode, untar

EMBEDDING = "target.token_embedder.embedding"
ARRAY = f"{EMBEDDING}/.zarray"
CONVERT = "convert --from run/checkpoint_0 --to out --format hf"


def t5x(name: str, changes: dict, *says: str, code=1, without=(), **more) -> Case:
    """The tiny base as a checkpoint that we wrote, with other files."""
    return case(f"T5X: {name}", CONVERT, *says, code=code, files={
        "run/checkpoint_0": copy("$T5X", changes, without)}, **more)  # fmt: skip


def orbax(name: str, changes: dict, *says: str) -> Case:
    """A checkpoint that T5X wrote by orbax."""
    files = {"x": untar("$DATA/t5x_1_0_orbax.tar.gz"), **{
        f"x/checkpoint_4/{file}": _over(content) for file, content in changes.items()}}  # fmt: skip
    return case(f"T5X of orbax: {name}", "convert --from x --to out --format hf", *says, code=1,
                files=files)  # fmt: skip


def _over(content: object):
    if callable(content):
        return content
    return edit(lambda old: content if isinstance(content, bytes) else content.encode())


def peft(name: str, changes: dict, *says: str, code=1, without=(), **more) -> Case:
    """The tiny adapter with other files, imported."""
    return case(
        f"PEFT: {name}",
        "library import adapter --format peft --name new --base $BASE --prompt mood "
        "--library library",
        *says, code=code, files={"adapter": copy("$PEFT", changes, without)}, **more,
    )  # fmt: skip


ZARRAY = {
    "shape": (None, 3, [], [8100], [8100, 16, 1], [10**15, 16], [-1, 16], [0, 0], ["8100", 16],
        [8101, 16],
              [2**63, 16], [1.5, 16]),
    "chunks": (None, 3, [], [0, 0], [-1, 16], [10**15, 16], [1]),
    "dtype": (None, 3, "", "<f3", "|O", "<i4", "|S5", "<f8x", "bfloat99", ["<f4"]),
    "compressor": (3, "gzip", {"id": "nonsense"}, {"id": "blosc", "cname": 3}, []),
    "fill_value": ("x", [], {}),
    "order": (None, "X", 3),
    "zarr_format": (None, 1, 3, 99, "2"),
    "filters": (3, [{"id": "x"}]),
    "dimension_separator": (3, "x"),
}  # fmt: skip
CONTENT = {
    "empty": "", "half": "{", "null": "null", "a list": "[]", "deep": "[" * 100_000 + "]" * 100_000,
    "latin-1": b'{"a": "\xe7"}', "zeros": bytes(100),
}  # fmt: skip
CONFIG = "adapter_config.json"
SETTINGS = {
    "peft_type": (None, 3, "IA3", "PROMPT_TUNING", []),
    "r": (None, 0, -1, "4", 1.5, True, [], 10**9, 10**400),
    "lora_alpha": (None, 0, -1, "4", True, [], 1e400, 10**400),
    "bias": ("all", "lora_only", 3),
    "use_dora": (True, "x"),
    "modules_to_save": (["lm_head"], "x", 3),
    "rank_pattern": (3, "x", [2], {"q": "4"}, {"q": None}, {"(q": 4}, {"q": 0}),
    "alpha_pattern": (3, {"q": []}, {"[": 1}),
    "init_lora_weights": ("pissa", "olora"),
    "something_of_2030": (True, {"on": 1}),
}  # fmt: skip
ACCEPTED = {  # what does not change what a trained adapter computes
    "use_rslora": ("x",),
    "rank_pattern": ({"(a+)+$": 4}, {"": "x"}),
    "init_lora_weights": (3, []),
    "layers_to_transform": ("x", {}, -1),
    "target_modules": (3, "(a+)+$", [3]),
    "base_model_name_or_path": (3, [], "../../etc/passwd", ""),
    "task_type": (3, "CAUSAL_LM"),
}
TENSORS = "adapter_model.safetensors"

CASES = [
    *(
        t5x(f"{name} = {str(value)[:30]}", {ARRAY: fields(**{name: value})},
            "embedding|checkpoint_0|memory|takes|wi")
        for name, values in ZARRAY.items()
        for value in values
    ),
    *(t5x(f"without {name}", {ARRAY: fields(removed=(name,))}, "embedding|checkpoint_0")
      for name in ("shape", "chunks", "dtype")),
    *(t5x(f".zarray: {name}", {ARRAY: text}, "embedding|checkpoint_0") for name,
        text in CONTENT.items()),
    *(t5x(f"checkpoint: {name}", {"checkpoint": text}, "checkpoint_0") for name,
        text in CONTENT.items()),
    t5x("checkpoint cut short", {"checkpoint": cut(0.5)}, "checkpoint_0"),
    t5x("checkpoint with a bit flipped", {"checkpoint": flip(0)}, "checkpoint_0"),
    t5x("checkpoint that is a pipe", {"checkpoint": fifo}, "checkpoint_0"),
    t5x("checkpoint without permission", {"checkpoint": mode(0, "x")}, "checkpoint_0"),
    t5x(".zarray that is a pipe", {ARRAY: fifo}, "checkpoint_0|zarray"),
    t5x(".zarray that is a link to nothing", {ARRAY: link("nothing")}, "checkpoint_0|embedding"),
    t5x("a chunk cut short", {f"{EMBEDDING}/0.0": cut(0.5)}, "embedding|checkpoint_0"),
    t5x("a chunk of zeros", {f"{EMBEDDING}/0.0": bytes(100)}, "embedding|checkpoint_0"),
    t5x("a chunk that is a pipe", {f"{EMBEDDING}/0.0": fifo}, "checkpoint_0|embedding"),
    t5x("a chunk missing", {}, "embedding|checkpoint_0", without=("0.0",)),
    t5x("an array missing", {}, "embedding", without=(EMBEDDING,)),
    t5x("an array too many", {"target.extra.kernel": copy(f"$T5X/{EMBEDDING}")}, "extra"),
    t5x("an array named outside", {"target.......etc.kernel": copy(f"$T5X/{EMBEDDING}")},
        "checkpoint_0"),
    t5x("an array that is a link to nothing", {EMBEDDING: link("nothing")},
        "embedding|checkpoint_0"),
    case("T5X: the newest that is a checkpoint is read", "convert --from run --to out --format hf",
         code=0, may=("out", "out/*"),
         files={"run/checkpoint_0": copy("$T5X"), "run/checkpoint_9/x": ""}),
    *(orbax(f"manifest.ocdbt is {name}", {"state/manifest.ocdbt": text}, "checkpoint_4|x")
      for name, text in CONTENT.items()),
    *(
        peft(f"{name} = {str(value)[:30]}", {CONFIG: fields(**{name: value})}, f"{name}|adapter")
        for name, values in SETTINGS.items()
        for value in values
    ),
    *(
        peft(f"{name} = {value} is accepted", {CONFIG: fields(**{name: value})}, code=0,
             may=("library*",), prints=True)
        for name, values in ACCEPTED.items()
        for value in values
    ),
    *(peft(f"{CONFIG}: {name}", {CONFIG: text}, CONFIG) for name, text in CONTENT.items()),
    *(peft(f"{CONFIG}: {name}", {CONFIG: place}, CONFIG, code=(1, 2)) for name, place in {
        "a pipe": fifo, "a link to nothing": link("nothing"), "a folder": mode(0o755, {"x": ""}),
        "no permission": mode(0, "{}")}.items()),
    *(peft(f"{TENSORS}: {name}", {TENSORS: place}, f"{TENSORS}|adapter") for name, place in {
        "empty": "", "a text": "x", "cut short": cut(0.5),
            "a header with a bit flipped": flip(0.01),
        "a pipe": fifo, "a link to nothing": link("nothing"), "no permission": mode(0, "x"),
        "of a base": copy("$BASE/model.safetensors"), "no tensors": b"\2\0\0\0\0\0\0\0{}"}.items()),
    peft("no weights", {}, "weight", without=(TENSORS,)),
    peft("a prompt that is no card's", {"pemt_card.json": "{}"}, "pemt_"),
    peft("a README that asks for code is not read", {"README.md": "{{ exec }}"}, code=0,
        may=("library*",)),
    case("PEFT: no base", "library import adapter --format peft --name new --prompt x --library l",
         "--base", files={"adapter": copy("$PEFT")}),
    case("PEFT: no prompt",
        "library import adapter --format peft --name new --base $BASE --library l",
         "--prompt", files={"adapter": copy("$PEFT")}),
    case("PEFT: a name with a slash",
        "library import adapter --format peft --name a/b --base $BASE "
         "--prompt x --library l", "a/b", files={"adapter": copy("$PEFT")}),
    case("PEFT: a target's flag",
        "library import adapter --format peft --model_dir run --base $BASE "
         "--library l", "model_dir", files={"adapter": copy("$PEFT")}),
    case("authors' code: a folder of nothing", "library import files --format reference --name new "
         "--base $BASE --prompt x --library l", "files", code=(1, 2), files={"files/x": ""}),
    case("authors' code: a text", "library import files.pt --format reference --name new "
         "--base $BASE --prompt x --library l", "files.pt|torch", code=(1, 2),
         files={"files.pt": "x"}),
    case("authors' code: experts without a target",
        "library import files --format reference --name x "
         "--experts a,b --base $BASE --library l", "model_dir|--name", files={"files/x": ""}),
]  # fmt: skip
