"""MODEL_DIR: checkpoints and their manifests, metrics.jsonl, and what a run may not write over."""

from case import Case, copy, cut, edit, fields, fifo, flip, link, mode, sealed, train

MANIFEST = "checkpoints/20/manifest/metadata"
DEEP = "[" * 100_000 + "]" * 100_000
MADE = ("run", "run/*", "library", "library/*")
ONE_STEP = {"without": ("10",)}


def resumed(name: str, changes: dict, *says: str, code=1, macros=None, only=False, **more) -> Case:
    """The finished run of stage 1 with other files, told to go on; `only` its last checkpoint."""
    run = copy("$SOURCE", changes, without=("10", "artefact") if only else ("artefact",))
    return train(name, *says, code=code, macros={"TRAIN_STEPS": 21} | (macros or {}),
                 files={"run": run}, **more)  # fmt: skip


def manifest(name: str, change: object, *says: str, **more) -> Case:
    """Another manifest of the only checkpoint."""
    return resumed(f"manifest: {name}", {MANIFEST: change}, *says, only=True, **more)


FIELDS = {
    "step": (None, "20", 20.5, [], 10, -1),
    "identity": (3, [], "x"),
    "leaves": (None, [], 3, {}, {"step": 3}, {"step": {}}),
    "metrics": (3, [], "x"),
    "score": (3, [], {"value": "x"}),
    "leaves/step": (None, 3, {"sha256": "x"}),
    "leaves/step/dtype": (None, 3, "float23", "O", "V8"),
    "leaves/step/shape": (None, 3, "x", [-1], ["a"], [10**15]),
    "leaves/step/sha256": (None, 3, "x"),
}
CONTENT = {
    "empty": "", "half": "{", "null": "null", "a list": "[]", "deep": DEEP,
    "latin-1": b'{"a": "\xe7"}', "zeros": bytes(100),
        "a long number": '{"step": ' + "9" * 5000 + "}",
}  # fmt: skip
METRICS = {  # rows at the end of metrics.jsonl
    "a null step": '{"step": null, "kind": "train"}\n',
    "no step": '{"kind": "train", "loss": 3}\n',
    "a text for a step": '{"step": "20", "kind": "train"}\n',
    "a fractional step": '{"step": 20.5, "kind": "train"}\n',
    "a list": "[1]\n",
    "a number": "3\n",
    "no JSON in the middle": 'nonsense\n{"step": 20, "kind": "train"}\n',
    "nested deep": DEEP + "\n",
    "half a surrogate": '{"step": 20, "kind": "\\ud800"}\n',
}
FOREIGN = {  # what is in a MODEL_DIR that no run has written
    "a config.gin": {"config.gin": "SEED = 3\n"},
    "a config.gin in latin-1": {"config.gin": b"# fa\xe7ade\n"},
    "metrics": {"metrics.jsonl": '{"step": 3, "accuracy": 100}\n'},
    "an artefact": {"artefact": mode(0o755, {"notes.txt": "mine\n"})},
    "an artefact that is a file": {"artefact": "mine\n"},
    "checkpoints that are a file": {"checkpoints": "mine\n"},
    "checkpoints that are a link to nothing": {"checkpoints": link("nothing")},
    "a config.gin that is a pipe": {"config.gin": fifo},
    "metrics that are a pipe": {"metrics.jsonl": fifo},
    "metrics that are a folder": {"metrics.jsonl": mode(0o755, {"x": ""})},
}
INSIDE = {  # a MODEL_DIR in the folder of something complete
    "an expert": ("library/tiny_mood/run", {"library": copy("$LIBRARY")}),
    "an expert's own folder": ("library/tiny_mood", {"library": copy("$LIBRARY")}),
    "a base": ("base/run", {"base": copy("$BASE")}),
    "a base itself": ("base", {"base": copy("$BASE")}),
    "an artefact": ("old/artefact/run", {"old": copy("$SOURCE", **ONE_STEP)}),
    "a checkpoint": ("old/checkpoints/20", {"old": copy("$SOURCE", **ONE_STEP)}),
    "checkpoints": ("old/checkpoints", {"old": copy("$SOURCE", **ONE_STEP)}),
    "a T5X checkpoint": ("checkpoint_0/run", {"checkpoint_0": copy("$T5X")}),
}


def swap(path, places) -> None:
    """The finished run with the names of its checkpoints exchanged."""
    copy("$SOURCE", without=("artefact",))(path, places)
    steps = path / "checkpoints"
    (steps / "10").rename(steps / "0")
    (steps / "20").rename(steps / "10")
    (steps / "0").rename(steps / "20")


HELD = (  # takes the lease of the folder as a run does, in a process of its own
    "import os, sys, time, subprocess, json; from pemt_jax.common.writing.lease import held; "
    "sys.path.insert(0, '.'); import shell; lease = held('run/run.lock', 'MODEL_DIR run'); "
    "ready = os.pipe(); pid = os.fork(); "
    "(lease.__enter__(), os.write(ready[1], b'x'), time.sleep(30), os._exit(0)) if not pid else 0; "
    "os.read(ready[0], 1); code = shell.execute('pemt-jax', {argv}); "
    "os.kill(pid, 9); os.waitpid(pid, 0); sys.stdout.flush(); sys.stderr.flush(); os._exit(code)"
)
SECOND = train("", files={"run/": ""}).argv

CASES = [
    *(
        manifest(f"{name} = {str(value)[:30]}", sealed("sha256", **{name: value}),
                 "version|damaged|renamed|holds|leaves|has")
        for name, values in FIELDS.items()
        for value in values
    ),
    *(
        manifest(f"without {name}", sealed("sha256", removed=(name,)),
            f"{name.split('/')[0]}|version|has no")
        for name in ("step", "identity", "leaves", "metrics", "score", "leaves/step")
    ),
    # Without a manifest it is no checkpoint: set aside with a warning, and the run begins anew.
    *(manifest(name, text, code=0, may=MADE) for name, text in CONTENT.items()),
    manifest("a pipe", fifo, "pipe"),
    manifest("a link to nothing", link("nothing"), code=0, may=MADE),
    manifest("no permission", mode(0, "{}"), "denied"),
    manifest("a folder", mode(0o755, {"x": ""}), code=0, may=MADE),
    manifest("one bit flipped", flip(), code=0, may=MADE),
    manifest("another step, not sealed", fields(step=10), code=0, may=MADE),
    train("checkpoints 10 and 20 exchanged", "renamed", code=1, macros={"TRAIN_STEPS": 21},
          files={"run": swap}),
    resumed("a step named with a superscript digit is left alone",
            {"checkpoints/2\u00b2/x": ""}, code=0, may=("run*", "library*")),
    *(
        resumed(f"metrics.jsonl: {name}", {"metrics.jsonl": edit(lambda old,
            row=row: old + row.encode())},
                code=0, may=MADE)  # rows that nobody can read are left out
        for name, row in METRICS.items()
    ),
    *(
        train(f"MODEL_DIR with {name}", "run", code=(1, 2), files={
            f"run/{file}": content for file, content in files.items()})
        for name, files in FOREIGN.items()
    ),
    *(
        train(f"MODEL_DIR inside {name}", "inside|is", code=(1, 2), macros={"MODEL_DIR": place},
              files=files)
        for name, (place, files) in INSIDE.items()
    ),
    Case("a second run in a MODEL_DIR in use", ("-c", HELD.format(argv=list(SECOND))), 2,
         ("in use by process",), files={"run/": ""}, may=("run/run.lock",)),
    train("a stranger's run.lock", "run.lock", code=(1, 2), files={"run/run.lock": "mine\n"}),
    train("a run.lock that is a folder", "run.lock", code=(1, 2), files={"run/run.lock/x": ""}),
    train("a run.lock that is a pipe", "run.lock", code=(1, 2), files={"run/run.lock": fifo}),
    train("an expert of this name that another run made", "tiny_mood",
          files={"library": copy("$LIBRARY")}),
    train("a read-only library", "LIBRARY", code=(1, 2), files={"library": mode(0o555, {"x": ""})}),
    train("a read-only MODEL_DIR", "MODEL_DIR", code=(1, 2), files={"run": mode(0o555, {"x": ""})}),
    train("a full disk", "large", code=1, largest_file=1000, may=("run*", "library*")),
    *(
        resumed(f"another {name}", {}, "holds", code=2, macros={name: value})
        for name, value in (("SEED", 3), ("METHOD", "lora"), ("BATCH_SIZE", 4),
                            ("LEARNING_RATE", 0.5), ("PROMPT_TEXT", "Another."), ("PRNG", "rbg"))
    ),
    resumed("fewer steps than were made", {}, "20", code=2, macros={"TRAIN_STEPS": 10}),
    resumed("another base", {}, "whose base", code=2,
        macros={"INITIAL_CHECKPOINT_PATH": "mini_t5"}),
    resumed("arrays cut short", {"checkpoints/20/state/_METADATA": cut(0.5)}, "checkpoints/20",
            only=True),
    resumed("a checkpoint that is a link to nothing", {"checkpoints/20": link("nothing")},
            "checkpoints", only=True, code=(1, 2)),
    resumed("a checkpoint that is a file", {"checkpoints/20": "mine\n"}, "checkpoints", only=True,
            code=(1, 2)),
]  # fmt: skip
