"""Headers of safetensors files, in a base and in an adapter."""

import json
import struct

from case import WEIGHTS, Case, case, copy, cut, edit, fifo, flip, link, mode

CONVERT = "convert --from base --to out --format t5x"
NAME = "decoder.final_layer_norm.weight"


def base(name: str, change: object, *says: str, code=1, **more) -> Case:
    """The tiny base with other weights."""
    files = {"base": copy("$BASE", {WEIGHTS: change})}
    return case(name, CONVERT, f"{WEIGHTS}|in base", *says, code=code, files=files, **more)


def header(change) -> object:
    """Other entries in the header; the bytes of the tensors stay."""

    def put(content: bytes) -> bytes:
        size = struct.unpack("<Q", content[:8])[0]
        entries = json.loads(content[8 : 8 + size])
        text = change(entries)
        text = (json.dumps(entries) if text is None else text).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return edit(put)


def entry(**values: object) -> object:
    """Other facts of one tensor."""
    return header(lambda entries: entries[NAME].update(values))


def text(content: str) -> object:
    return header(lambda entries: content)


FACTS = {  # of a tensor of 16 numbers
    "dtype": (None, 3, "F23", "F8_E4M3", "F4", "I32", "BOOL", "", "f32", ["F32"], "U8"),
    "shape": (None, 3, "16", [-16], [15], [17], [16, 1], [10**15], [10**400], [1.5], ["16"], [None],
              [True], [0], [2**63], [[16]]),
    "data_offsets": (None, 3, [], [0], [0, 64, 64], [64, 0], [-64, 0], [0, 10**15], [0, 10**400],
                     ["0", "64"], [0.5, 64.5], [None, None], {"a": 1}, [0, 63], [10**15,
                     10**15 + 64]),
}  # fmt: skip
HEADERS = {
    "an empty object": "{}", "a list": "[]", "null": "null", "a text": '"x"', "half an object": "{",
    "nothing": "", "spaces": "   ", "nested deep": "[" * 100_000 + "]" * 100_000,
    "a tensor that is a list": '{"a": []}', "a tensor that is null": '{"a": null}',
    "a tensor without facts": '{"a": {}}', "half a surrogate": '{"\\ud800": {}}',
    "a lone surrogate itself": '{"\ud800": {}}',
        "a number of 5,000 digits": '{"a": ' + "9" * 5000 + "}",
    "metadata alone": '{"__metadata__": {"format": "pt"}}',
        "metadata of numbers": '{"__metadata__": 3}',
    "a million tensors of nothing": json.dumps(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10**5)}),
}  # fmt: skip
SIZES = (0, 1, 2**31, 2**63 - 1, 2**64 - 1, 10**8 + 1)


def renamed(name: str) -> object:
    return header(lambda entries: entries.update({name: entries.pop(NAME)}))


CASES = [
    *(
        base(f"{name} = {str(value)[:30]}", entry(**{name: value}), quick=name == "dtype")
        for name, values in FACTS.items()
        for value in values
    ),
    *(base(f"without {fact}", header(lambda e,
        fact=fact: e[NAME].pop(fact) and None)) for fact in FACTS),
    *(base(f"the header is {name}", text(content)) for name, content in HEADERS.items()),
    *(
        base(f"a header of {size} bytes by its length",
             edit(lambda old, size=size: struct.pack("<Q", size) + old[8:]))
        for size in SIZES
    ),
    *(base(f"cut to {share:.3%}", cut(share)) for share in (0, 0.00001, 0.001, 0.01, 0.5, 0.999)),
    *(base(f"{length} bytes", edit(lambda old, n=length: old[:n])) for length in (1, 7, 8, 9)),
    base("a bit of the length flipped", flip(0)),
    base("twice the bytes", edit(lambda old: old * 2)),
    base("a byte more", edit(lambda old: old + b"x")),
    base("a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    base("a zip", b"PK\x03\x04" + bytes(500)),
    base("a pickle", b"\x80\x02cos\nsystem\n"),
    base("a web page", "<!DOCTYPE html><html>404</html>"),
    base("a pointer of Git LFS",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
    base("zeros", bytes(10_000)),
    base("a pipe", fifo),
    base("a link to nothing", link("nothing")),
    base("a link to itself", link(WEIGHTS)),
    base("no permission", mode(0, "x")),
    base("a folder", mode(0o755, {"x": ""})),
    *(base(f"a tensor renamed to {name!r}", renamed(name)) for name in (
        "", "../x", "a/b", "/etc/passwd", "x" * 10_000, "decoder.final_layer_norm.weigth", "\n",
        "\x00")),
    base("a tensor left out", header(lambda e: e.pop(NAME) and None)),
    base("a tensor too many", header(lambda e: e.update({"extra": e[NAME]}))),
    base("two tensors of the same bytes", header(lambda e: e.update(
        {NAME: e["encoder.final_layer_norm.weight"]}))),
    case("an index of shards that is half", CONVERT, "index", code=1, files={"base": copy(
        "$BASE", {f"{WEIGHTS}.index.json": "{"}, without=(WEIGHTS,))}),
    case("an index of shards outside", CONVERT, "base", code=1, files={"base": copy("$BASE", {
        f"{WEIGHTS}.index.json": '{"weight_map": {"a": "../../x.safetensors"}}'},
        without=(WEIGHTS,))}),
    case("an index that is a list", CONVERT, "index", code=1, files={"base": copy("$BASE", {
        f"{WEIGHTS}.index.json": "[]"}, without=(WEIGHTS,))}),
    case("an index of numbers", CONVERT, "base", code=1, files={"base": copy("$BASE", {
        f"{WEIGHTS}.index.json": '{"weight_map": {"a": 3}}'}, without=(WEIGHTS,))}),
    case("an index of missing shards", CONVERT, "nowhere.safetensors", code=1, files={"base": copy(
        "$BASE", {f"{WEIGHTS}.index.json": '{"weight_map": {"a": "nowhere.safetensors"}}'},
        without=(WEIGHTS,))}),
]  # fmt: skip
