"""card.json of an expert: damaged, edited, of other versions; libraries that cannot be read."""

from case import Case, case, copy, cut, fields, fifo, flip, link, mode, sealed

DEEP = "[" * 100_000 + "]" * 100_000
SEAL = "card_sha256"
VERIFY = "library verify --library library"
CARD = "tiny_mood/card.json"


def library(name: str, card: object, *says: str, command: str = VERIFY, code=1, **more) -> Case:
    """The tiny library with another card of tiny_mood."""
    files = {"library": copy("$LIBRARY", {CARD: card} if card is not None else more.pop("changes"))}
    return case(name, command, *says, code=code, files=files, prints=True, **more)


# Fields of a card whose own sha256 is right: another version wrote it, or somebody careful.
SEALED = {
    "kind": (None, 3, "expert ", "wizard", ["expert"], {}),
    "method": (None, 3, [], {}),
    "task": (None, 3, []),
    "base_fingerprint": (None, 3, []),
    "base_name": (None, 3),
    "description": (None, 3, []),
    "experts": (None, 3, "x", {}, [3], [None], [{}], [{"name": "x"}], [{"name": 3, "sha256": "x"}]),
    "rank": (None, -1, 1.5, "4", True, [], 1e400),
    "config": (None, 3, "x", []),
    "metrics": (None, 3, [], {"a": "x"}, {"a": None}, {"a": True}, {"a": [1]}, {"a": 10**400},
                {"a": float("nan")}, {"a": float("inf")}),
    "versions": (None, 3, [], {"jax": 3}, {"jax": None}),
    "sha256": (None, 3, "", "x", "0" * 64),
}  # fmt: skip
# Whole files.
CONTENT = {
    "empty": "",
    "half": "{",
    "null": "null",
    "a number": "3",
    "a list": "[]",
    "a text": '"card"',
    "an empty object": "{}",
    "nested 100,000 deep": DEEP,
    "an object of depth": '{"kind": ' + DEEP + "}",
    "latin-1": '{"kind": "fa\xe7ade"}'.encode("latin-1"),
    "UTF-16": '{"kind": "expert"}'.encode("utf-16"),
    "zeros": bytes(500),
    "a number of 5,000 digits": '{"rank": ' + "9" * 5000 + "}",
    "half a surrogate": '{"kind": "\\ud800"}',
    "two objects": "{}{}",
    "a comment": "// card\n{}",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "a million spaces": " " * 10**6,
}
PLACES = {
    "a pipe": fifo,
    "a link to nothing": link("nothing"),
    "a link to itself": link("card.json"),
    "no permission": mode(0, "{}"),
    "a folder": mode(0o755, {"x": ""}),
}
DAMAGE = {
    "one bit flipped": flip(0.5),
    "the first bit flipped": flip(0),
    "cut short": cut(0.9),
    "another metric": fields(**{"metrics": {"accuracy": 100.0}}),
    "another base": fields(base_fingerprint="0" * 64),
    "no sha256 of itself": fields(removed=("card_sha256",)),
    "a sha256 that is null": fields(card_sha256=None),
}
STAGE2 = (
    "train --gin_file=$GIN --gin.MODEL_DIR=run --gin.MIXTURE_OR_TASK_NAME=tiny_mood "
    "--gin.INITIAL_CHECKPOINT_PATH=$BASE --gin.LIBRARY=library --gin.METHOD=pemt_target "
    "--gin.EXPERTS=('tiny_mood',)"
)

CASES = [
    *(
        library(f"{name} = {str(value)[:40]}{type(value).__name__}", sealed(SEAL, **{name: value}),
                f"{name}|damaged")
        for name, values in SEALED.items()
        for value in values
    ),
    *(
        library(f"without {name}", sealed(SEAL, removed=(name,)), name)
        for name in SEALED
    ),
    *(library(f"the card is {name}", text, CARD) for name, text in CONTENT.items()),
    *(library(f"the card is {name}", place, CARD) for name, place in PLACES.items()),
    *(library(f"the card has {name}", damage, CARD) for name, damage in DAMAGE.items()),
    *(
        library(f"{command[8:]} with one bit flipped", flip(), CARD,
                command=f"{command} --library library")
        for command in ("library list", "library show tiny_mood", "library verify tiny_mood",
                        "library export tiny_mood --to out --format folder",
                        "library export tiny_mood --to out --format peft",
                        "library merge tiny_mood --base $BASE --to out",
                        "library combine new --experts tiny_mood,tiny_topic --method linear",
                        "library random new --like tiny_mood",
                        "library push tiny_mood shared",
                        "library add library/tiny_mood --name again")
    ),
    library("stage 2 with a card with one bit flipped", flip(), CARD, command=STAGE2),
    library("stage 2 with a card of another base", sealed(SEAL, base_fingerprint="0" * 64),
            "trained on the base", command=STAGE2),
    library("stage 2 with an expert of rank -1", sealed(SEAL, rank=-1), "rank", command=STAGE2),
    library("list of a card that is a link to nothing", link("nothing"), CARD,
            command="library list --library library"),
    library("weights cut short", None, "weights.safetensors",
            changes={"tiny_mood/weights.safetensors": cut(0.5)}),
    library("weights with one bit flipped", None, "weights.safetensors",
            changes={"tiny_mood/weights.safetensors": flip()}),
    library("weights of another expert", None, "weights.safetensors",
            changes={"tiny_mood/weights.safetensors":
                     copy("$LIBRARY/tiny_topic/weights.safetensors")}),
    library("weights that are a link to nothing", None, "weights.safetensors",
            changes={"tiny_mood/weights.safetensors": link("nothing")}),
    library("weights that are a pipe", None, "weights.safetensors",
            changes={"tiny_mood/weights.safetensors": fifo}),
    library("weights without permission", None, "weights.safetensors|denied",
            changes={"tiny_mood/weights.safetensors": mode(0, "x")}),
    library("an expert's folder without permission", None, "denied|read",
            changes={"tiny_mood": mode(0, {"card.json": "{}"})}),
    case("a library without permission", "library list --library library", "denied|read",
         code=(1, 2), files={"library": mode(0, {"x": ""})}),
    library("an empty expert's folder is no expert", None, code=0,
            changes={"tiny_mood": mode(0o755, {"notes.txt": ""})}),
    case("a target's artefact as an expert", "library add run/artefact --name x --library library",
         "target", code=(1, 2), files={"run": copy("$TARGET", without=("checkpoints",))}),
]  # fmt: skip
