"""Every block of a README is run as it is printed, or says what it needs that tests do not have.

    bash      run by bash, with two training steps and a tiny T5 as the base
    console   the same, and what follows a line with $ is the output
    python    run by python, or a module if its first line is `# NAME.py`
    bibtex    not run

A block that cannot be run here has a line before it: <!-- needs: network -->, or hardware, or both,
and why. Its commands are checked as far as possible: flags and names, and the launch scripts by
--dry-run. tasks/README.md has its own tests.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import gin
import hub_server
import pytest
from shell import Shell
from tiny_adapter import adapter_files
from tiny_system import T5, World, random_base

import pemt_jax
from pemt_jax import report
from pemt_jax.cli import library_command
from pemt_jax.cli.command import arguments_of
from pemt_jax.config import MINI_T5
from pemt_jax.evaluate import evaluate
from pemt_jax.sweep import sweep
from pemt_jax.tasks.commands import preparing
from pemt_jax.train import train

CHECKOUT = Path(__file__).parents[1]
READMES = [
    "README.md",
    "configs/README.md",
    "configs/methods/README.md",
    "launch/README.md",
    "launch/mini_t5/README.md",
    "pemt_jax/assets/mini_t5/README.md",
    "pemt_jax/library/README.md",
    "pemt_jax/interop/peft/README.md",
    "pemt_jax/planning/README.md",
    "pemt_jax/sweeping/README.md",
    "pemt_jax/t5x/README.md",
    "tests/benchmarks/README.md",
    "tests/fuzz/README.md",
]
FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>.*) -->\n)?^```(?P<language>.*)\n(?P<text>(?:.*\n)*?)```$", re.M
)
NEEDS = re.compile(r"(network|hardware)( \([^()]+\))?(, (network|hardware)( \([^()]+\))?)?")
SLOW = [
    *"kill.py oracle.py local_processes XLA_FLAGS 'lamps') adamw_hf expert_linears".split(),
    *"--topology=v5e lamps; combine noise merge methods/".split(),
]
# What makes a block short enough for a test. Steps of the same shapes are compiled only once, from
# Python and by command.
BASE = "INITIAL_CHECKPOINT_PATH=google-t5/t5-base"
LENGTHS = 'task_feature_lengths={"inputs": 64, "targets": 8}, buckets=(32, 64)'
SHORTER = {
    r"train_steps=\d+": f'train_steps=2, initial_checkpoint_path="google-t5/t5-base", {LENGTHS}',
    r"--gin_file=demo/\w+\.gin": rf"\g<0> --gin.{BASE} --gin.train.batch_size=16",
    "--runs 100": "--runs 1",
}
TRAIN = "--gin.TRAIN_STEPS=2 --gin.make_schedule.warmup_steps=0"


@dataclasses.dataclass(frozen=True)
class Block:
    readme: str
    line: int
    language: str
    needs: str | None
    text: str

    @property
    def slow(self) -> bool:
        return any(mark in self.text for mark in SLOW)

    @property
    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        parts = [part for line in lines for part in line.split(" && ")]
        return [words for part in parts if (words := shlex.split(part, comments=True))]


def read(readme: str) -> str:
    return (CHECKOUT / readme).read_text(encoding="utf-8")


def blocks(readme: str) -> list[Block]:
    text = read(readme)
    return [
        Block(readme, text.count("\n", 0, found.start()) + 1, **found.groupdict())
        for found in FENCE.finditer(text)
    ]


ALL = [block for readme in READMES for block in blocks(readme)]


@pytest.fixture(scope="module")
def hub(base):
    """A Hugging Face hub with the models that a reader downloads, in small."""
    with hub_server.served() as started:
        files = {"spiece.model": Path(MINI_T5, "spiece.model").read_bytes()}
        files |= {path.name: path.read_bytes() for path in base.iterdir()}
        started.commit("google/flan-t5-large", files)
        started.commit("lorahub/flan_t5_large-glue_mrpc", adapter_files(T5))
        yield started


@pytest.fixture(scope="module")
def shell(tmp_path_factory, hub):
    world = World(tmp_path_factory.mktemp("shell"))
    environment = world.environment() | {
        "PEMT_JAX_CACHE": str(world.folder / "cache"),
        "MORE pemt_jax.train": TRAIN,
    }
    environment |= hub.environment(world.folder / "hub")
    with Shell(environment) as started:
        yield started


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return random_base(tmp_path_factory.mktemp("base") / "t5")


@pytest.fixture
def folder(tmp_path, base):
    """What a reader has at hand: the checkout's scripts, a base, the first README's tasks."""
    for name in ("launch", "tests"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    for name in ("google-t5/t5-base", "mini_t5", "phase3"):
        shutil.copytree(base, tmp_path / name)
    (tasks,) = (b.text for b in blocks("README.md") if b.text.startswith("# my_tasks.py"))
    (tmp_path / "my_tasks.py").write_text(tasks)
    (tmp_path / "my.gin").write_text("import my_tasks\n")
    for name, size in (("films", 66), ("films_dev", 8), ("lamps", 66), ("lamps_dev", 8)):
        label = ("negative", "positive")
        rows = [{"text": f"A {name} number {i}.", "label": label[i % 2]} for i in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(block: Block, shell: Shell, folder: Path) -> None:
    text = block.text
    for pattern, replacement in SHORTER.items():
        text = re.sub(pattern, replacement, text)
    if block.language == "console":
        for command, output in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", text, re.M):
            done = shell.run(command, folder)
            assert done.stdout == output, done.stdout
            assert bool(done.returncode) == output.startswith("error: ")
        return
    if block.language == "python":
        name = re.match(r"# (\w+\.py)\n", text)
        file = name.group(1) if name else "block.py"
        (folder / file).write_text(text)
        text = f"python {file}"
    done = shell.run(text, folder)
    assert done.returncode == 0, f"{block.readme}, line {block.line}:\n{done.stdout}"


@pytest.mark.parametrize(
    "slow",
    [
        pytest.param(True, marks=pytest.mark.slow, id="all"),
        pytest.param(False, marks=(pytest.mark.slow, pytest.mark.walk), id="quick"),
    ],
)
@pytest.mark.parametrize("readme", READMES)
def test_the_blocks_of_a_readme_run_in_order(shell, folder, readme, slow):
    for block in blocks(readme):
        if not block.needs and block.language in ("bash", "console", "python"):
            if slow or not block.slow:
                run(block, shell, folder)


def test_no_block_is_left_out():
    for block in ALL:
        where = f"{block.readme}, line {block.line}"
        assert block.language in ("bash", "console", "python", "bibtex"), where
        assert block.needs is None or NEEDS.fullmatch(block.needs), where
    for readme in READMES:  # an indented block would escape
        assert not re.search(r"\n\n    \S", FENCE.sub("", read(readme))), readme
    # pytest writes a README into its own hidden cache folder.
    found = {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("[!.]*/README.md")}
    for folder in ("configs", "launch", "pemt_jax", "tests"):
        found |= {str(p.relative_to(CHECKOUT)) for p in (CHECKOUT / folder).rglob("README.md")}
    assert found | {"README.md", "tasks/README.md"} == {*READMES, "tasks/README.md"}


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.needs], ids=lambda b: f"{b.readme}:{b.line} needs {b.needs}"
)
def test_a_block_that_is_not_run_names_what_exists(block):
    for command in block.commands:
        check(command)


def check(command: list[str]) -> None:
    """Raise for a command that could not work on any machine."""
    match command:
        case ["pip", "install", *_] | ["source", _] | ["python3", "-m", "venv", _]:
            pass
        case ["python", "-m", "pemt_jax.train" | "pemt_jax.evaluate" as module, *flags]:
            try:
                arguments_of(train if module == "pemt_jax.train" else evaluate, flags)
            finally:
                gin.clear_config()
        case ["python", "-m", "pemt_jax.sweep", *flags]:
            try:
                arguments_of(sweep, flags)
            finally:
                gin.clear_config()
        case ["python", "-m", "pemt_jax.report", *arguments]:
            report._parser().parse_args(arguments)
        case ["python", "-m", "pemt_jax.library", *arguments]:
            library_command._parser().parse_args(arguments)
        case ["python", "-m", "pemt_jax.tasks", "prepare", *names]:
            assert preparing.tasks_named(names, "prepare")
        case ["python", "-m", "t5x.train", *flags]:
            files = [flag.partition("=")[2] for flag in flags if flag.startswith("--gin_file=pemt")]
            assert files and all((CHECKOUT / f.removeprefix("pemt_jax/")).is_file() for f in files)
        case ["python", script, *_]:
            assert (CHECKOUT / script).is_file()
        case ["./launch/demo.sh" | "./launch/test.sh" as script, *_]:
            assert os.access(CHECKOUT / script, os.X_OK)
        case ["launch/tpu_vm.sh", action, *rest]:
            dry_run("launch/tpu_vm.sh", action, "--dry-run", *rest)
        case ["launch/gke_xpk.sh", *rest]:
            dry_run("launch/gke_xpk.sh", "--dry-run", *rest)
        case ["sbatch", *options, wrapped] if wrapped.startswith("--wrap="):
            assert all(option.startswith("--") for option in options)
            check(shlex.split(wrapped.removeprefix("--wrap=")))
        case ["sbatch", *_]:
            start = command.index("launch/slurm.sbatch")
            assert all(option.startswith("--") for option in command[1:start])
            dry_run("launch/slurm.sbatch", "--dry-run", *command[start + 1 :])
        case _:
            raise AssertionError(f"{command} is no command that this test knows")


def dry_run(script: str, *arguments: str) -> None:
    done = subprocess.run(["bash", script, *arguments], cwd=CHECKOUT, capture_output=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_a_command_in_the_text_exists():
    for readme in READMES:
        for module in re.findall(r"`python -m ([\w.]+)", read(readme)):
            file = module.replace("pemt_jax.tasks", "tasks").replace(".", "/")
            found = CHECKOUT / f"{file}.py", CHECKOUT / file / "__main__.py"
            assert any(path.is_file() for path in found) or module.startswith("t5x."), module


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_somewhere():
    for readme in [*READMES, "tasks/README.md", "launch/tutorial.ipynb"]:
        links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", read(readme))
        for file, anchor in links:
            target = (CHECKOUT / readme).parent / file if file else CHECKOUT / readme
            assert target.exists(), f"{readme}: {file}"
            if anchor:
                headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.M)
                assert anchor in map(slug, headings), f"{readme}: {file}#{anchor}"


def test_the_first_readme_is_short_and_names_the_version():
    assert len(read("README.md").splitlines()) <= 220
    assert f"version = {{{pemt_jax.__version__}}}" in read("README.md")


def test_every_fault_names_its_test():
    table = read("launch/README.md").partition("## Faults")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", table, re.M)][1:]
    tests = "".join(path.read_text() for path in CHECKOUT.glob("tests/*/test_*.py"))
    assert len(rows) >= 18
    for fault, _, code, test in rows:
        assert code.isdigit(), fault
        assert f"def {test.strip('`')}(" in tests, fault
