"""Command lines of all commands, plan's arguments, environment variables, pipes and full disks."""

from case import Case, case, copy, link, mode, piped, train

PLAN = "plan --topology=v5e:1x1 --shape=small"
LIST = "library list --library $LIBRARY"
TWO = "library combine new --experts tiny_mood,tiny_topic --method"
ONE = "library combine new --experts tiny_mood --method linear"
# (command, words of the sentence); the library is the tiny one where none is named
WRONG = [
    ("trian", "trian"),
    ("TRAIN", "TRAIN"),
    ("train extra", "extra"),
    ("--versoin", "versoin"),
    ("evaluate", "MODEL_DIR"),
    ("predict", "MODEL_DIR"),
    ("train", "no value|expected"),
    ("convert", "--from"),
    ("convert --from $BASE", "--to"),
    ("convert --from $BASE --to out", "--format"),
    ("convert --from $BASE --to out --format onnx", "onnx"),
    ("convert --from $BASE --to out --format hf --dtype float23", "float23"),
    ("convert --from $BASE --to out --format hf --dtype", "--dtype"),
    ("convert --from $BASE --to out --format hf extra", "extra"),
    ("convert --from $BASE --to $BASE --format hf", "--to"),
    ("convert --from $BASE --to $BASE/inside --format hf", "--to"),
    ("convert --form $BASE", "--from|--form"),
    ("library", "COMMAND"),
    ("library lsit", "lsit"),
    ("library list nobody", "nobody"),
    ("library show", "No expert"),
    ("library show nobody", "nobody"),
    ("library show ../x", "../x"),
    ("library verify nobody", "nobody"),
    ("library add", "FOLDER"),
    ("library add nowhere --library l", "nowhere"),
    ("library add $LIBRARY/tiny_mood --name ../x --library l", "../x"),
    ("library add $LIBRARY/tiny_mood --name .x --library l", ".x"),
    ("library add $LIBRARY/tiny_mood --name CON/ --library l", "CON/"),
    ("library remove", "NAME"),
    ("library remove nobody", "nobody"),
    ("library remove ../library", "../library"),
    ("library remove .", "'.'"),
    ("library export tiny_mood", "--to"),
    ("library export tiny_mood --to out", "--format"),
    ("library export tiny_mood --to out --format zip", "zip"),
    ("library export nobody --to out --format peft", "nobody"),
    ("library export tiny_mood --to $LIBRARY/new --format folder", "inside"),
    ("library export tiny_mood --to $BASE/new --format folder", "inside"),
    ("library import", "PATH|required"),
    ("library import x --format zip --name x", "zip"),
    ("library push tiny_mood", "REPO"),
    ("library push nobody shared", "nobody"),
    ("library push tiny_mood a/b/c", "a/b/c"),
    ("library pull", "REPO"),
    ("library pull nowhere --library l", "nowhere"),
    ("library pull a/b@ --library l", "a/b@"),
    ("library merge tiny_mood", "--base"),
    ("library merge nobody --base $BASE --to out", "nobody"),
    ("library merge tiny_mood --base $BASE --to out --dtype int8", "int8"),
    ("library merge tiny_mood --base $BASE --to $BASE/x", "--to|inside"),
    ("library combine new --experts tiny_mood", "--method"),
    ("library combine new --experts nobody --method linear", "nobody"),
    (f"{TWO} mean_", "mean_"),
    ("library combine new --experts tiny_mood,tiny_mood --method linear", "tiny_mood"),
    (f"{ONE} --weights=a", "'a'"),
    (f"{ONE} --weights=1,2", "weights"),
    (f"{ONE} --weights=nan", "nan"),
    (f"{ONE} --weights=inf", "inf"),
    ("library combine new --experts , --method linear", "''"),
    ("library combine ../x --experts tiny_mood --method linear", "../x"),
    ("library combine tiny_mood --experts tiny_mood --method linear", "tiny_mood"),
    (f"{TWO} ties --density 2", "2"),
    (f"{TWO} ties --density=-1", "-1"),
    (f"{TWO} svd --rank 0", "rank"),
    (f"{TWO} svd --rank x", "x"),
    (f"{ONE} --prompt_of nobody", "nobody"),
    ("library random new", "--like"),
    ("library random new --like nobody", "nobody"),
    ("library random new --like tiny_mood --seed x", "x"),
    ("library random new --like tiny_mood --seed=-1", "-1"),
    ("library random a/b --like tiny_mood", "a/b"),
    ("report", "RUN"),
    ("report $TARGET", "--to"),
    ("report $TARGET --to page.pdf", "page.pdf"),
    ("report $TARGET $TARGET --to $TARGET/metrics.jsonl", "metrics.jsonl"),
    ("report $TARGET --to page.html --import nowhere", "nowhere"),
    ("tasks lsit", "lsit"),
    ("tasks show", "name"),
    ("tasks show nobody", "nobody"),
    ("tasks show tiny_mood --split nowhere", "nowhere"),
    ("tasks show tiny_mood --rows=-1", "-1"),
    ("tasks show tiny_mood --rows many", "many"),
    ("tasks list nobody", "nobody"),
    ("tasks list [", "["),
    ("tasks prepare", "name"),
    ("tasks prepare nobody", "nobody"),
    ("tasks cache extra", "extra"),
    ("tasks cache --older_than 3", "--older_than"),
    ("tasks cache --prune --older_than=-1", "-1"),
    ("tasks cache --prune --older_than nan", "nan"),
    ("tasks cache --prune --older_than many", "many"),
    ("tasks --import", "--import"),
    ("tasks --import ./my_tasks.py list", "my_tasks"),
    ("tasks --import my-tasks list", "my-tasks"),
    ("tasks --import no_such_module list", "no_such_module"),
    ("make_vocabulary", "--corpus"),
    ("make_vocabulary --corpus nowhere --output out", "nowhere"),
    ("make_vocabulary --corpus . --output .", "--output"),
    ("make_vocabulary --corpus . --output out --pieces 0", "--pieces"),
    ("make_vocabulary --corpus . --output out --pieces many", "many"),
    ("make_vocabulary --corpus . --output out --seed x", "x"),
    ("make_vocabulary --corpus . --output out --nothing", "--nothing"),
    ("make_vocabulary --corpus . --output $BASE/spiece.model", "--output"),
    ("plan", "--topology"),
    ("plan --shape=small", "--topology"),
    ("plan --topology=v5e:1x1", "--shape"),
    ("plan --topology=v9z:2x2 --shape=small", "v9z"),
    ("plan --topology=v5e --shape=small", "v5e"),
    ("plan --topology=v5e:0x0 --shape=small", "0x0"),
    ("plan --topology=v5e:-1x2 --shape=small", "-1"),
    ("plan --topology=v5e:2x2x2x2 --shape=small", "2x2x2x2"),
    ("plan --topology=v5e:axb --shape=small", "axb"),
    ("plan --topology=v5e:3x5 --shape=small", "3x5"),
    ("plan --topology=v5e:4000x4000 --shape=small", "16000000|4000x4000"),
    ("plan --topology=v4:4000x4000x4000 --shape=small", "4000"),
    (f"plan --topology=v5e:{'9' * 5000}x1 --shape=small", "v5e|digits"),
    ("plan --topology=v5e:1x1 --shape=tiny_", "tiny_"),
    ("plan --topology=v5e:1x1 --gin_file=nowhere.gin", "nowhere.gin"),
    ("plan --topology=v5e:1x1 --gin.MIXTURE_OR_TASK_NAME=nobody --gin_file=$GIN --gin.MODEL_DIR=x "
     "--gin.INITIAL_CHECKPOINT_PATH=$BASE", "nobody"),
    *(
        (f"{PLAN} --{name}={value}", f"{name}|{value}")
        for name, values in {
            "method": ("adapt", "''"),
            "batch_size": ("0", "-1", "many", "1.5", "9" * 30),
            "eval_batch_size": ("0", "-1", "many"),
            "inputs": ("0", "-4", "many", "1000000000"),
            "targets": ("0", "-4", "many", "1000000000"),
            "dtype": ("float23", "int8"),
            "frozen_dtype": ("float23",),
            "remat_policy": ("all",),
            "prng": ("threefly",),
            "train_steps": ("-1", "many"),
            "model_parallel": ("0", "-1", "7", "many", "1000000000"),
            "expert_parallel": ("0", "-1", "7", "many"),
            "compile": ("-1", "many"),
            "log": ("loud",),
            "nothing": ("1",),
        }.items()
        for value in values
    ),
    (f"{PLAN} --search --batch_size=0", "batch_size"),
    (f"{PLAN} --json=nowhere/at/all/ --batch_size=0", "batch_size|nowhere"),
    (f"{PLAN} extra", "extra"),
]  # fmt: skip
ENVIRONMENT = [  # (variable, value, command, exit code, words)
    ("PEMT_JAX_LOG", "loud", LIST, 2, "loud"),
    ("PEMT_JAX_TRACEBACK", "0", "library show nobody --library $LIBRARY", 2, "nobody"),
    ("PEMT_JAX_LIBRARY", "nowhere", "library list", 2, "nowhere"),
    ("PEMT_JAX_LIBRARY", "s3x://x/y", "library list", 2, "s3x"),
    ("PEMT_JAX_LIBRARY", "", "library list", 2, "library"),
    ("PEMT_JAX_CACHE", "file/cache", "tasks show tiny_mood --import tiny_system", 0, ""),
    ("PEMT_JAX_CACHE", "readonly", "tasks cache", 0, ""),
    ("PEMT_JAX_CACHE", "", "tasks cache", 0, ""),
]
FRESH = [
    ("JAX_PLATFORMS", "tpu", "train", 2, "tpu"),
    ("JAX_PLATFORMS", "nonsense", "train", 2, "nonsense"),
    ("PEMT_JAX_START_SECONDS", "soon", "train as one of two", 2, "soon"),
    ("SLURM_NTASKS", "many", "train", 0, ""),
    ("PEMT_JAX_VOCABULARY", "nowhere", "train", (1, 2), "nowhere"),
    ("PYTHONIOENCODING", "ascii", "library show caf\u00e9 --library $LIBRARY", 2, "caf"),
]
TRAIN_ONE = train("", macros={"TRAIN_STEPS": 1}).argv
OF_TWO = ("--coordinator_address=localhost:1", "--process_count=2", "--process_index=1")
COMMANDS = {"train": TRAIN_ONE, "train as one of two": (*TRAIN_ONE, *OF_TWO)}
RUN = {"run": copy("$TARGET", without=("checkpoints",))}
PREDICT = ("predict", "--gin.MODEL_DIR=run", "--gin.OUTPUT_FILE=out.jsonl")


def _environment(rows, **more) -> list[Case]:
    return [
        Case(
            f"{name}={value}" + (f" in {command.split()[0]}" if name == "PEMT_JAX_CACHE" else ""),
            COMMANDS.get(command, tuple(command.split())),
            code,
            (says,) if says else (),
            environment={name: value},
            files={"file": "x", "readonly": mode(0o555, {})},
            may=("*",) if code == 0 else (),
            **more,
        )
        for name, value, command, code, says in rows
    ]


CASES = [
    *(
        case(command[:90], command, *says, code=(1, 2), prints=True,
             environment={"PEMT_JAX_LIBRARY": "$LIBRARY"})
        for command, *says in WRONG
    ),
    *_environment(ENVIRONMENT),
    *_environment(FRESH, fresh=True, seconds=60),
    *(
        case(f"{command} into a pipe that nobody reads", command, code=0, stdout="closed",
             may=("out*",))
        for command in (LIST, "tasks list", "tasks cache", "--help", "convert --help",
                        "convert --from $BASE --to out --format hf", "evaluate --help")
    ),
    *(
        case(f"a full disk, {name}", command, "large|written|write", code=1,
            stdin=b"mood: a good film\n" * 40,
             largest_file=2000, files=RUN)
        for name, command in enumerate((PREDICT,
                        ("convert", "--from", "$BASE", "--to", "out", "--format", "hf"),
                        ("convert", "--from", "$BASE", "--to", "out", "--format", "t5x"),
                        ("report", "run", "--to", "page.html", "--no-gates"),
                        ("library", "export", "tiny_mood", "--to", "out", "--format", "folder",
                         "--library", "$LIBRARY"),
                        ("library", "export", "tiny_mood", "--to", "out", "--format", "peft",
                         "--library", "$LIBRARY"),
                        ("library", "merge", "tiny_mood", "--base", "$BASE", "--to", "out",
                         "--library", "$LIBRARY")))
    ),
    *(
        case(f"OUTPUT_FILE is {name}",
             (*PREDICT[:2], f"--gin.OUTPUT_FILE={place}", "--gin.INPUT_FILE=in.txt"),
             "is the input|inside|OUTPUT_FILE", files={**RUN, "in.txt": "mood: good\n",
             "hard/x": "", "link": link("in.txt"), "base": copy("$BASE"),
                 "library": copy("$LIBRARY")})
        for name, place in {
            "INPUT_FILE": "in.txt", "INPUT_FILE by another way": "./hard/../in.txt",
            "a link to INPUT_FILE": "link", "the run's weights": "run/artefact/weights.safetensors",
            "the run's card": "run/artefact/card.json",
                "a new file in the artefact": "run/artefact/x",
            "the run's config.gin": "run/config.gin", "the run's metrics": "run/metrics.jsonl",
            "a base's weights": "base/model.safetensors", "a new file of a base": "base/x",
            "an expert's card": "library/tiny_mood/card.json"}.items()
    ),
    case("OUTPUT_FILE is a pipe, which is written and stays one", (*PREDICT[:2],
         "--gin.OUTPUT_FILE=out"), code=0, stdin=b"mood: good\n",
         files={**RUN, "out": piped("cat $PIPE >read")}),
    case("INPUT_FILE is a pipe", (*PREDICT[:2], "--gin.INPUT_FILE=in"), code=0,
         files={**RUN, "in": piped("echo mood: good >$PIPE")}),
    case("a report to a pipe, which is written and stays one",
         "report run --to page.html --no-gates", code=0,
         files={**RUN, "page.html": piped("cat $PIPE >read")}),
    *(
        case(f"convert over {name}", "convert --from $BASE --to out --format hf", "--to out",
             files=files)
        for name, files in {
            "a tokenizer.json alone": {"out/tokenizer.json": "{}"},
            "a folder model.safetensors": {"out/model.safetensors/x": "mine"},
            "a T5X folder": {"out/target.foo/x": "mine"},
            "a base that is another's": {"out": copy("$BASE")},
            "notes beside what we wrote": {"out/SHA256SUMS": "x", "out/notes.txt": "mine"}}.items()
    ),
    Case("Ctrl-C while it imports", TRAIN_ONE, 130, ("Ctrl-C",), fresh=True, interrupt_after=1.0,
         seconds=60),
    Case("a read-only cache", TRAIN_ONE, (0, 1), (), environment={"PEMT_JAX_CACHE": "readonly"},
         files={"readonly": mode(0o555, {})}, may=("run*", "library*")),
]  # fmt: skip
