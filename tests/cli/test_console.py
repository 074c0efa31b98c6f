"""`pemt-jax COMMAND` lists the commands and runs each as `python -m pemt_jax.COMMAND` does."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pemt_jax.cli import console

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """Run Python in an empty folder; return exit code, output and error."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_commands_are_listed_with_a_line_each(run, capsys):
    code, output, error = run("-m", "pemt_jax")
    assert (code, error) == (0, "")
    for name, summary in console.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", output, re.MULTILINE)
    assert run("-m", "pemt_jax", "--help") == (0, output, "")
    assert console.main([]) == 0
    assert capsys.readouterr().out == output
    with pytest.raises(SystemExit) as ended:
        console.main(["--help"])
    assert (ended.value.code, capsys.readouterr().out) == (0, output)


def test_every_program_of_the_package_is_a_command():
    programs = {
        path.stem if path.stem != "__main__" else path.parent.name
        for pattern in ("pemt_jax/*.py", "pemt_jax/*/__main__.py", "tasks/__main__.py")
        for path in CHECKOUT.glob(pattern)
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert programs - {"pemt_jax"} == set(console.COMMANDS)
    assert all(importlib.util.find_spec(f"pemt_jax.{name}") for name in console.COMMANDS)


def test_modules_in_the_working_directory_are_found_as_by_python_m(run, tmp_path):
    elsewhere = tmp_path / "bin"
    elsewhere.mkdir()
    script = elsewhere / "pemt-jax"
    script.write_text(
        "import importlib.util, runpy\n"
        "from pemt_jax.cli import console\n"
        "found = importlib.util.find_spec\n"
        "runpy.run_module = lambda *_, **__: print(found('my_own_tasks') is not None)\n"
        "console.main(['tasks'])\n"
    )
    (tmp_path / "my_own_tasks.py").write_text("")
    assert run(str(script)) == (0, "True\n", "")
    assert run("-P", str(script)) == (0, "False\n", "")


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (
            ["trian"],
            "There is no command 'trian', expected one of train, evaluate, predict, plan, "
            "sweep, report, convert, library, tasks (nearest: 'train').",
        ),
        (["--hlep"], "There is no argument '--hlep', expected one of those in --help (nearest: "),
        (["xyzzy", "--help"], "There is no command 'xyzzy', expected one of train"),
    ],
)
def test_an_unknown_command_is_one_sentence(capsys, argv, sentence):
    assert console.main(argv) == 2
    output, error = capsys.readouterr()
    assert output == "" and error.startswith(f"error: {sentence}") and error.count("\n") == 1


CALLS = {
    "help": ("convert", "--help"),
    "list": ("library", "list", "--library=."),
    "missing flag": ("convert", "--from=x"),
    "one sentence": ("library", "list", "--library=nowhere"),
    "wrong value": ("plan", "--topology=v5f:1x1", "--shape=11B"),
    "gin main": (
        "train",
        "--gin_file=runs/stage1.gin",  # it says `from pemt_jax import train`
        "--gin.MODEL_DIR=run",
        "--gin.MIXTURE_OR_TASK_NAME=pemt_cb",
        "--gin.TRAIN_STEPS=1",
        "--gin.INITIAL_CHECKPOINT_PATH=nowhere",
        "--gin.METHOD=pemt_suorce",
    ),
}


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=name, marks=[pytest.mark.slow] * (name == "gin main"))
        for name, call in CALLS.items()
    ],
)
def test_a_command_is_the_same_as_pythons_m(run, call):
    command, *arguments = call
    code, output, error = run("-m", "pemt_jax", command, *arguments)
    assert (code, output) == run("-m", f"pemt_jax.{command}", *arguments)[:2]
    if code in (1, 2):
        assert error.splitlines()[-1].startswith("error: ") and error.count("error: ") == 1
