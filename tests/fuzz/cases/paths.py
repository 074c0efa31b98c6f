"""Everything that can be wrong with a path, for every argument that is one."""

from case import Case, copy, fifo, link, mode

LONG = "x" * 300
# What is at the place: name -> (files of the case, the path).
BROKEN = {
    "nothing": ({}, "nowhere.html"),
    "nothing in nothing": ({}, "nowhere/at/all.html"),
    "a text file": ({"thing.html": "text\n"}, "thing.html"),
    "below a file": ({"thing.html": "text\n"}, "thing.html/below"),
    "an empty file": ({"thing.html": ""}, "thing.html"),
    "an empty folder": ({"thing.html/": ""}, "thing.html"),
    "a folder of others": ({"thing.html/notes.txt": "mine\n"}, "thing.html"),
    "a pipe": ({"thing.html": fifo}, "thing.html"),
    "a link to nothing": ({"thing.html": link("nothing")}, "thing.html"),
    "a link to itself": ({"thing.html": link("thing.html")}, "thing.html"),
    "a folder that may not be read": ({"thing.html": mode(0, {"x": ""})}, "thing.html"),
    "a file that may not be read": ({"thing.html": mode(0, "text")}, "thing.html"),
    "below what may not be read": ({"thing.html": mode(0, {"x": ""})}, "thing.html/x"),
    "300 characters": ({}, LONG),
    "5,000 characters": ({}, "y/" * 2500),
    "an empty text": ({}, ""),
    "spaces": ({}, "   "),
    "half a surrogate": ({}, "x\udc80y"),
    "a line break": ({}, "a\nb"),
    "s3": ({}, "s3://"),
    "an unknown scheme": ({}, "hdfs://bucket/x"),
    "https": ({}, "https://example.invalid/x"),
    "a bucket without a name": ({}, "gs://"),
    "a user's home": ({}, "~/x"),
}  # fmt: skip
PREDICT = ("predict", "--gin.MODEL_DIR=run")
RUN = {"run": copy("$TARGET", without=("checkpoints",))}
TRAIN = (
    "train", "--gin_file=$GIN", "--gin.MIXTURE_OR_TASK_NAME=tiny_mood",
)  # fmt: skip
BASE, MODEL = "--gin.INITIAL_CHECKPOINT_PATH=$BASE", "--gin.MODEL_DIR=run"
LIBRARY = "--gin.LIBRARY=library"
READ = {  # an argument that is read: (command, files beside)
    "INITIAL_CHECKPOINT_PATH": ((*TRAIN, MODEL, LIBRARY, "--gin.INITIAL_CHECKPOINT_PATH=@"), {}),
    "VOCABULARY": (("evaluate", "--gin.MODEL_DIR=run", "--gin.VOCABULARY=@"), RUN),
    "INPUT_FILE": ((*PREDICT, "--gin.INPUT_FILE=@"), RUN),
    "the MODEL_DIR of evaluate": (("evaluate", "--gin.MODEL_DIR=@"), {}),
    "the MODEL_DIR of predict": (("predict", "--gin.MODEL_DIR=@"), {}),
    "--gin_file": (("train", "--gin_file=@", MODEL, BASE), {}),
    "convert --from": (("convert", "--from", "@", "--to", "out", "--format", "t5x"), {}),
    "report RUN": (("report", "@", "--to", "page.html"), {}),
    "library --library": (("library", "verify", "--library", "@"), {}),
    "library add": (("library", "add", "@", "--library", "library"), {}),
    "library import": (
        ("library", "import", "@", "--format", "peft", "--name", "x", "--library", "library",
         "--base", "$BASE", "--prompt", "x"), {}),
    "library import --base": (
        ("library", "import", "adapter", "--format", "peft", "--name", "x", "--library", "l",
         "--base", "@", "--prompt", "x"), {"adapter": copy("$PEFT")}),
    "library pull": (("library", "pull", "@", "--library", "library"), {}),
    "library merge --base": (
        ("library", "merge", "tiny_mood", "--base", "@", "--to", "merged", "--library", "$LIBRARY"),
        {}),
    "--import": (("tasks", "--import", "@", "list"), {}),
}  # fmt: skip
WRITTEN = {  # an argument that is written to
    "MODEL_DIR": ((*TRAIN, BASE, LIBRARY, "--gin.TRAIN_STEPS=1", "--gin.MODEL_DIR=@"), {}),
    "OUTPUT_FILE": ((*PREDICT, "--gin.OUTPUT_FILE=@"), RUN),
    "convert --to": (("convert", "--from", "$BASE", "--to", "@", "--format", "hf"), {}),
    "report --to": (("report", "run", "--to", "@", "--no-gates"), RUN),
    "library export --to": (
        ("library", "export", "tiny_mood", "--to", "@", "--format", "folder",
         "--library", "$LIBRARY"), {}),
    "LIBRARY": ((*TRAIN, BASE, MODEL, "--gin.TRAIN_STEPS=1", "--gin.LIBRARY=@"), {}),
}  # fmt: skip
# What is accepted, being a place that can be written to or a file that can be read.
NEW = ("nothing", "nothing in nothing", "an empty folder", "a folder of others", "a line break")
REPLACED = (
    "nothing",
    "nothing in nothing",
    "a text file",
    "an empty file",
    "a link to nothing",
    "a file that may not be read",
)
ACCEPTED = {
    "MODEL_DIR": NEW,
    "LIBRARY": NEW,
    "INPUT_FILE": ("a text file", "an empty file"),
    "OUTPUT_FILE": (*REPLACED, "a line break"),
    "report --to": REPLACED,
    "convert --to": ("nothing", "nothing in nothing", "an empty folder", "a line break"),
    "library export --to": ("nothing", "nothing in nothing", "an empty folder", "a line break"),
    "library --library": ("an empty folder", "a folder of others"),
}
NAMED = {  # how a sentence writes the path, where not as it is
    "an empty text": "''|no value|path|required",
    "spaces": "'   '|no value|path|local folder    ",
    "an empty file": "thing.html|no value",  # as of gin: it sets nothing
    "a link to nothing": "thing.html|nothing does not exist",
    "below what may not be read": "thing.html",
    "a line break": "a\\nb",
    "half a surrogate": "x\\udc80y",
}
ABSENT = ("There is no file", "does not exist")
NOTHING = (  # is there
    "nothing", "nothing in nothing", "below a file", "a link to nothing", "a link to itself",
    "300 characters", "5,000 characters", "a line break", "a user's home",
)  # fmt: skip
# Waiting is right there: for the other end of the pipe.
WAITING = ("INPUT_FILE", "OUTPUT_FILE", "report --to")


def _cases(table: dict) -> list[Case]:
    found = []
    for argument, (argv, beside) in table.items():
        for kind, (files, path) in BROKEN.items():
            if kind == "a pipe" and argument in WAITING:
                continue
            code = 0 if kind in ACCEPTED.get(argument, ()) else (1, 2)
            found.append(
                Case(
                    f"{argument} is {kind}",
                    tuple(part.replace("@", path) for part in argv),
                    code,
                    () if code == 0 else (NAMED.get(kind, path[:20]),),
                    never=() if kind in NOTHING else ABSENT,
                    files={**beside, **files},
                    stdin=b"mood: a good film\n",
                    may=("*",) if code == 0 else (),
                )
            )
    return found


CASES = [*_cases(READ), *_cases(WRITTEN)]
