"""Every installed gin file loads, needs what its header says, and is in configs/README.md."""

import re
from pathlib import Path

import gin
import pytest
from optax import sgd

from pemt_jax import configs
from pemt_jax.cli import command as cli
from pemt_jax.cli.gin_config import load
from pemt_jax.common.errors import UsageError
from pemt_jax.config import T5Config
from pemt_jax.evaluate import evaluate
from pemt_jax.planning.job import Job, pemt_of
from pemt_jax.run_config import TrainConfig
from pemt_jax.train import train

ROOT = Path(configs.__file__).parent
CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "configs" / "README.md").read_text(encoding="utf-8")
METHODS_README = (CHECKOUT / "configs" / "methods" / "README.md").read_text(encoding="utf-8")
NOT_RUNS = ("models", "t5x", "tables")  # t5x/: test_t5x.py; tables/: test_tables.py
RUNS = sorted(
    str(p.relative_to(ROOT)) for p in ROOT.glob("*/*.gin") if p.parent.name not in NOT_RUNS
)
RUNS.remove("runs/common.gin")
RUNS.remove("runs/reference.gin")
RUNS.remove("methods/zero_shot.gin")
REQUIRED = {
    "MODEL_DIR": "runs/x",
    "MIXTURE_OR_TASK_NAME": "vader_movies",
    "TRAIN_STEPS": "9000",
    "INITIAL_CHECKPOINT_PATH": "t5-base",
    "EXPERTS": "('a', 'b')",
    "INITIAL_EXPERT": "a",
}


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin.clear_config()


def needed(name: str) -> list[tuple[str, str]]:
    """Bindings for the macros that a file, or what it includes, requires."""
    text, pending = "", [name]
    while pending:
        text += (ROOT / pending.pop()).read_text()
        pending = [
            file
            for file in re.findall(r"include '(.*)'", text)
            if (ROOT / file).read_text() not in text
        ]
    macros = re.findall(r"^(\w+) = %gin.REQUIRED", text, re.M)
    if name in ("demo/pretrain.gin", "demo/decoder.gin"):
        macros.append("MODEL_DIR")
    return [(macro, REQUIRED[macro]) for macro in dict.fromkeys(macros)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_loads_and_misses_nothing_but_what_its_header_asks_for(name):
    load(train, [name], needed(name), [str(ROOT)])
    with pytest.raises(UsageError, match="There is no value for .*MODEL_DIR"):
        load(train, [name], [pair for pair in needed(name) if pair[0] != "MODEL_DIR"], [str(ROOT)])


EXPERTS = dict.fromkeys("abcdef", 30)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("methods/")])
def test_a_header_says_how_much_a_method_trains_on_t5_base(name):
    text = (ROOT / name).read_text()
    (said,) = re.findall(r"^# Trained: .*?([\d,]+) on T5-base", text, re.M)
    given = cli.arguments_of(
        train, [f"--gin_file={name}", *(f"--gin.{k}={v}" for k, v in needed(name))]
    )
    options, t5 = given["options"], T5Config(vocab_size=32100)
    job = Job(t5, pemt_of(given["method"], t5, options, 30, EXPERTS), given["method"], sgd(1))
    trainable, _, _ = job.parameters()
    assert sum(x.size for x in trainable.values()) == int(said.replace(",", ""))
    assert re.search(r"^# Paper: .*(arXiv \d{4}\.\d{5}|none)", text, re.M)


@pytest.mark.parametrize("name", ["runs/stage1.gin", "runs/stage2.gin"])
def test_the_authors_choices_can_follow_a_run(name):
    load(train, [name, "runs/reference.gin"], needed(name), [str(ROOT)])
    assert gin.query_parameter("PemtConfig.prompt_init") == "normal"
    assert gin.query_parameter("make_optimizer.name") == "adamw_hf"


def test_the_file_of_a_run_also_serves_evaluate():
    name = "runs/stage2.gin"
    load(evaluate, [name], needed(name), [str(ROOT)])
    model_dir = gin.query_parameter("pemt_jax.evaluate.evaluate.model_dir")
    assert model_dir.scoped_selector.startswith("MODEL_DIR")


def test_a_flag_of_another_function_leaves_the_run_its_own_of_that_name():
    flags = [f"--gin.{name}={value}" for name, value in REQUIRED.items()]
    flags += ["--gin_file=runs/stage2.gin", "--gin.FewShot.seed=3", "--gin.SEED=1"]
    assert cli.arguments_of(train, flags)["seed"] == 1
    assert gin.query_parameter("FewShot.seed") == 3


def test_a_misspelled_macro_of_a_run_is_named(capsys):
    flags = [f"--gin.{name}={value}" for name, value in REQUIRED.items()]
    assert cli.run(train, ["--gin_file=runs/stage2.gin", *flags, "--gin.BATCH_SIZES=3"]) == 2
    assert "(nearest: 'BATCH_SIZE')" in capsys.readouterr().err


def test_the_readme_names_every_run():
    here = [name for name in RUNS if not name.startswith("methods/")]
    assert [name for name in here if f"`{name}`" not in README] == []
    methods = [Path(name).name for name in RUNS if name not in here]
    assert [name for name in methods if f"`{name}`" not in METHODS_README] == []


def test_the_readme_names_every_macro_and_no_other():
    files = [path.read_text() for path in ROOT.glob("runs/*.gin")]
    macros = {name for text in files for name in re.findall(r"^([A-Z]\w*) *=", text, re.M)}
    fields = {name.upper() for name in TrainConfig.parameters()}
    tables = README.partition("## Macros")[2].partition("\n## ")[0].split("\n\n| flag")
    named = [set(re.findall(r"`([A-Z_]+)`", " ".join(rows(table)))) for table in tables]
    assert named[0] == macros
    assert named[1] <= fields - macros


def rows(table):
    """The first cells of a Markdown table."""
    return re.findall(r"^\| (.*?) \|", table, re.M)


def test_the_readme_has_the_values_of_the_reference_preset():
    given = (ROOT / "runs/reference.gin").read_text()
    table = README.partition("| choice | default |")[2]
    bound = set(re.findall(r"^ *(?:\w+\.)*(\w+) = ", given, re.M))
    named = {name.rpartition(".")[2] for name in re.findall(r"^\| `([\w.]+)`", table, re.M)}
    assert named == bound


def test_what_the_schedule_of_the_demo_complains_of_can_be_set(tmp_path):
    flags = ["--gin_file=demo/stage1.gin", f"--gin.MODEL_DIR={tmp_path}"]
    flags += ["--gin.MIXTURE_OR_TASK_NAME=vader_movies", "--gin.TRAIN_STEPS=20"]
    with pytest.raises(UsageError, match=r"50 warm-up .* \(WARMUP_STEPS, TRAIN_STEPS\)"):
        cli.arguments_of(train, flags)
    assert cli.arguments_of(train, [*flags, "--gin.WARMUP_STEPS=5"])["train_steps"] == 20
