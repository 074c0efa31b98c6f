"""The command line of the mains: the flags of t5x, one sentence for whatever can be mistyped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gin
import pytest

from pemt_jax.cli import command as cli

MAIN = '''
"""A main like those of the package."""

import os
import pathlib
import sys
import time
from collections.abc import Sequence

import gin

from pemt_jax.cli import command as cli
from pemt_jax.common.errors import PemtError


class Stopped(PemtError):
    def __init__(self, message):
        super().__init__(message)
        self.exit_code = 130


def train(model_dir: str, train_steps: int, rate: float = 0.1, optimizer=None,
          experts: Sequence[str] = (), fail: str | None = None):
    """Train nothing.

    Args:
      model_dir: where the run lives.
    """
    print(f"{model_dir!r} {train_steps!r} {rate!r} {optimizer} {experts!r} {train.__module__}",
          flush=True)
    folder = pathlib.Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.gin").write_text(gin.operative_config_str())
    if fail == "stopped":
        raise Stopped("Stopped at step 3.")
    if fail == "expected":
        raise PemtError("The disk is full.")
    if fail == "bug":
        raise ZeroDivisionError("a bug")
    if fail == "wait":
        time.sleep(60)


if __name__ == "__main__":
    sys.exit(cli.run(train))
'''

OPTIMIZERS = """
class Adam:
    def __init__(self, lr: float, beta: float = 0.9):
        self.lr, self.beta = lr, beta

    def __repr__(self):
        return f"Adam({self.lr}, {self.beta})"


def sgd(lr: float = 1.0):
    return f"sgd({lr})"
"""

CONFIG = """
from __gin__ import dynamic_registration

from demo import optimizers
from demo import train as train_script

RATE = 0.5
train_script.train:
  model_dir = %MODEL_DIR
  train_steps = %TRAIN_STEPS
  optimizer = @optimizers.Adam()
optimizers.Adam.lr = %RATE
"""


@pytest.fixture
def command(tmp_path):
    """Run `python -m demo.train` in a folder with base.gin; return exit code, output, error."""
    package = tmp_path / "demo"
    package.mkdir()
    for name, text in {"__init__": "", "train": MAIN, "optimizers": OPTIMIZERS}.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "base.gin").write_text(CONFIG)

    def run(*flags):
        done = subprocess.run(
            [sys.executable, "-m", "demo.train", *flags],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    return run


GOOD = ("--gin_file=base.gin", "--gin.MODEL_DIR=out", "--gin.TRAIN_STEPS=4")


def test_file_macros_and_bindings_reach_the_main(command):
    code, output, error = command(*GOOD, "--gin.train.experts=['a', 'b']", "--gin.RATE=2")
    assert (code, error) == (0, "")
    assert output == "'out' 4 0.1 Adam(2, 0.9) ['a', 'b'] demo.train\n"


def test_inner_quotes_are_optional_and_a_later_file_wins(command, tmp_path):
    (tmp_path / "more.gin").write_text("include 'base.gin'\nRATE = 3\n")
    code, output, _ = command(
        "--gin_file",
        "base.gin",
        "--gin_file",
        "more.gin",
        "--gin.TRAIN_STEPS=4",
        f"--gin.MODEL_DIR='{tmp_path}/o u t'",
    )
    assert code == 0
    assert output.startswith(f"'{tmp_path}/o u t' 4 0.1 Adam(3, 0.9)")


def test_a_macro_fills_the_argument_of_its_name_without_any_file(command):
    code, output, _ = command("--gin.MODEL_DIR=out/x-1", "--gin.TRAIN_STEPS=4", "--gin.RATE=1e-3")
    assert code == 0
    assert output == "'out/x-1' 4 0.001 None () demo.train\n"


def test_a_macro_on_the_line_wins_over_a_value_in_a_file(command, tmp_path):
    (tmp_path / "fixed.gin").write_text("include 'base.gin'\ntrain.rate = 0.25\n")
    (tmp_path / "base.gin").write_text(CONFIG.replace("RATE = 0.5", "").replace("%RATE", "0.5"))
    flags = ("--gin_file=fixed.gin", *GOOD[1:])
    assert " 0.25 Adam" in command(*flags)[1]
    assert " 0.75 Adam" in command(*flags, "--gin.RATE=0.75")[1]
    code, _, error = command(*flags, "--gin.RATE=0.75", "--gin.train.rate=1.0")
    assert code == 2 and "The macro RATE" in error  # two wishes for one argument


def test_what_a_file_imports_can_be_bound_though_the_file_does_not_bind_it(command):
    code, output, _ = command(
        *GOOD, "--gin.optimizers.sgd.lr=3", "--gin.train.optimizer=@optimizers.sgd()"
    )
    assert code == 0
    assert "sgd(3)" in output


def test_the_operative_configuration_runs_again_alone(command, tmp_path):
    assert command(*GOOD)[0] == 0
    written = (tmp_path / "out" / "config.gin").read_text()
    assert "train_script.train.rate = 0.1" in written  # a default
    code, again, error = command("--gin_file=out/config.gin")
    assert (code, error) == (0, "")
    assert again == "'out' 4 0.1 Adam(0.5, 0.9) () demo.train\n"
    assert (tmp_path / "out" / "config.gin").read_text() == written


def test_files_are_found_in_the_search_paths_and_among_the_installed(command, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "base.gin").rename(tmp_path / "elsewhere" / "other.gin")
    code, output, _ = command(
        "--gin_search_paths=nowhere,elsewhere", "--gin_file=other.gin", *GOOD[1:]
    )
    assert code == 0
    assert cli.CONFIGS.name == "configs" and (cli.CONFIGS / "__init__.py").is_file()


def test_help_names_flags_and_arguments(command):
    code, output, error = command("--help")
    assert (code, error) == (0, "")
    for part in (
        "python -m demo.train",
        "A main like those",
        "Train nothing.",
        "--gin_file",
        "--gin_search_paths",
        "rate = 0.1",
    ):
        assert part in output


FAULTS = {
    "misspelled macro": ((*GOOD, "--gin.RTAE=3"), "The macro RTAE", "(nearest: 'RATE')"),
    "misspelled binding": (
        (*GOOD, "--gin.trian.rate=3"),
        "'trian.rate'",
        "(nearest: 'train.rate')",
    ),
    "misspelled argument": ((*GOOD, "--gin.train.rat=3"), "no argument 'rat'", "(nearest: 'rate')"),
    "misspelled reference": (
        (*GOOD, "--gin.train.optimizer=@optimizers.sdg()"),
        "demo.optimizers has no 'sdg'",
        "(nearest: 'sgd')",
    ),
    "misspelled flag": (
        ("--gin_fiel=base.gin",),
        "'--gin_fiel=base.gin'",
        "(nearest: '--gin_file')",
    ),
    "missing file": (("--gin_file=bse.gin",), "'bse.gin'", "(nearest: 'base.gin')"),
    "missing MODEL_DIR": (
        ("--gin_file=base.gin", "--gin.TRAIN_STEPS=4"),
        "MODEL_DIR",
        "--gin.MODEL_DIR=",
    ),
    "no file and no arguments": ((), "MODEL_DIR, TRAIN_STEPS", "or a gin file"),
    "text for an int": ((*GOOD[:2], "--gin.TRAIN_STEPS=many"), "'many'", "expected a whole number"),
    "float for an int": ((*GOOD[:2], "--gin.TRAIN_STEPS=4.0"), "4.0", "expected a whole number"),
    "number for text": ((*GOOD, "--gin.MODEL_DIR=2024"), "2024", "expected a text"),
    "text for a list": ((*GOOD, "--gin.train.experts=movies"), "'movies'", "expected a list"),
    "required": ((*GOOD, "--gin.RATE=%gin.REQUIRED"), "RATE", "--gin.RATE="),
    "unclosed bracket": ((*GOOD, "--gin.train.experts=['a'"), "['a'", "expected a string"),
    "no value": ((*GOOD, "--gin.RATE="), "--gin.RATE=", "--gin.NAME=VALUE"),
    "no binding": ((*GOOD, "--gin.RATE"), "--gin.RATE", "--gin.NAME=VALUE"),
    "macro of itself": ((*GOOD, "--gin.RATE=%RATE"), "RATE is its own value", "(RATE -> RATE)"),
    "macros in a circle": (
        (*GOOD, "--gin.RATE=%OTHER", "--gin.OTHER=[%RATE]"),
        "is its own value",
        "RATE -> OTHER",
    ),
    "scope that nothing enters": ((*GOOD, "--gin.a/train.rate=3"), "'a'", "expected train or"),
    "flag without its file": (("--gin_file",), "--gin_file", "expected one argument"),
}


@pytest.mark.parametrize("flags, found, expected", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_sentence_and_exit_code_2(command, tmp_path, flags, found, expected):
    code, output, error = command(*flags)
    assert (code, output) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    assert found in error and expected in error
    assert not (tmp_path / "out").exists()


FILE_FAULTS = {
    "train_script.train.rat = 1": ("broken.gin line 5", "no argument 'rat'", "nearest: 'rate'"),
    "train_scrip.train.rate = 1": ("broken.gin line 5", "'train_scrip'", "nearest: 'train_script'"),
    "train_script.trane.rate = 1": ("broken.gin line 5", "no 'trane'", "nearest: 'train'"),
    "train_script.train.rate = =": ("broken.gin line 5", "Unable to parse"),
    "from demo import optimisers": ("broken.gin line 5", "optimisers"),
    "include 'bas.gin'": ("broken.gin line 5", "'bas.gin'", "nearest: 'base.gin'"),
    "TRIAN_STEPS = 3": ("TRIAN_STEPS", "nearest: 'TRAIN_STEPS'"),
}


def test_files_that_include_one_another_are_one_sentence(command, tmp_path):
    (tmp_path / "one.gin").write_text("include 'two.gin'\n")
    (tmp_path / "two.gin").write_text("include 'one.gin'\n")
    code, output, error = command("--gin_file=one.gin", *GOOD[1:])
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert "one.gin -> two.gin -> one.gin" in error


@pytest.mark.parametrize("status", ["0", "3", "'bye'", ""])
def test_a_users_module_that_exits_is_a_failure_that_names_the_line(command, tmp_path, status):
    (tmp_path / "leaving.py").write_text(f"import sys\nsys.exit({status})\n")
    (tmp_path / "leaving.gin").write_text(
        "from __gin__ import dynamic_registration\nimport leaving\n"
    )
    code, output, error = command("--gin_file=base.gin", "--gin_file=leaving.gin", *GOOD[1:])
    assert (code, output, error.count("\n")) == (1, "", 1)
    assert "leaving.py line 2 called sys.exit" in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", FILE_FAULTS)
def test_a_fault_in_a_file_names_its_place(command, tmp_path, line):
    head = (
        "from __gin__ import dynamic_registration\nfrom demo import optimizers\n"
        "from demo import train as train_script\n\n"
    )
    (tmp_path / "broken.gin").write_text(f"{head}{line}\n")
    code, output, error = command("--gin_file=base.gin", "--gin_file=broken.gin", *GOOD[1:])
    assert (code, output) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in FILE_FAULTS[line]:
        assert part in error


def test_a_macro_whose_reader_a_file_replaced_is_no_fault_in_a_file_but_one_on_the_line(
    command, tmp_path
):
    (tmp_path / "fixed.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom demo import optimizers\n"
        "include 'base.gin'\noptimizers.Adam.lr = 0.125\n"
    )
    flags = ("--gin_file=fixed.gin", *GOOD[1:])
    assert "Adam(0.125" in command(*flags)[1]
    code, _, error = command(*flags, "--gin.RATE=3")
    assert code == 2 and "The macro RATE" in error


def test_a_required_macro_that_nothing_reads_any_more_is_not_asked_for(command, tmp_path):
    (tmp_path / "fixed.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom demo import optimizers\n"
        "include 'base.gin'\nRATE = %gin.REQUIRED\noptimizers.Adam.lr = 0.125\n"
    )
    code, output, error = command("--gin_file=fixed.gin", *GOOD[1:])
    assert (code, error) == (0, "")
    assert "Adam(0.125" in output


@pytest.mark.parametrize(
    "fail, code, sentence",
    [
        ("expected", 1, "error: The disk is full.\n"),
        ("stopped", 130, "error: Stopped at step 3.\n"),
    ],
)
def test_an_error_of_the_main_is_one_sentence_with_its_own_exit_code(command, fail, code, sentence):
    assert command(*GOOD, f"--gin.train.fail={fail}")[::2] == (code, sentence)


def test_a_bug_keeps_its_traceback(command):
    code, _, error = command(*GOOD, "--gin.train.fail=bug")
    assert code == 1
    assert "Traceback" in error and "train.py" in error and "ZeroDivisionError: a bug" in error


def test_ctrl_c_is_one_sentence_and_exit_code_130(command, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.train", *GOOD, "--gin.train.fail=wait"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "demo.train" in process.stdout.readline()
    while not (tmp_path / "out" / "config.gin").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "error: Stopped by Ctrl-C.\n")


def test_mains_can_be_called_one_after_another_in_one_process(capsys, tmp_path):
    def evaluate(model_dir: str, split: str = "test"):
        print(model_dir, split)
        Path(model_dir, "config.gin").write_text(gin.operative_config_str())

    for split in ("validation", "test"):
        flags = [f"--gin.MODEL_DIR={tmp_path}"]
        flags += ["--gin.SPLIT=validation"] if split == "validation" else []
        assert cli.run(evaluate, flags) == 0
        assert capsys.readouterr().out == f"{tmp_path} {split}\n"
        assert "evaluate.model_dir = %MODEL_DIR" in (tmp_path / "config.gin").read_text()
    assert cli.run(evaluate, ["--gin.MODEL_DIR=x", "--gin.SPLT=3"]) == 2
    assert "nearest: 'SPLIT'" in capsys.readouterr().err


def test_libraries_are_silent_at_start(tmp_path):
    program = (
        "from pemt_jax.cli import command as cli\n"
        "def main():\n"
        " import jax, seqio, tensorflow as tf; jax.numpy.zeros(3).sum(); tf.constant([1])\n"
        " assert not tf.config.get_visible_devices('GPU')\n"
        "raise SystemExit(cli.run(main, []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
