"""What every command has: one sentence for a wrong flag, the stack behind it, the log."""

import io
import logging
import sys

import pytest

from pemt_jax import convert
from pemt_jax.cli import command, library_command, plan_flags, startup
from pemt_jax.cli.exit_codes import exit_code_of, report
from pemt_jax.cli.parser import Parser
from pemt_jax.common.errors import PemtError, UsageError


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """No test depends on the environment of the suite, and none leaves a log level behind."""
    for name in ("PEMT_JAX_TRACEBACK", "PEMT_JAX_LOG", "PEMT_JAX_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    yield
    startup.show_log("warning")


def rehearse(model_dir: str, fail: bool = False):
    if fail:
        raise PemtError("The disk is full.")
    log = logging.getLogger("pemt_jax.training.loop")
    log.debug("three examples were too long")
    log.info("step 0 is compiled")
    log.warning("the disk is nearly full")


def plan(argv):
    return exit_code_of(lambda: plan_flags.parse(argv, "doc") and 0)


# Each fails with one sentence: (run, arguments, exit code, sentence, function named in the stack).
FAILURES = {
    "gin main": (
        lambda argv: command.run(rehearse, argv),
        ["--gin.MODEL_DIR=x", "--gin.FAIL=True"],
        1,
        "The disk is full.",
        "in rehearse",
    ),
    "gin itself": (
        lambda argv: command.run(rehearse, argv),
        ["--gin.rehearse.modle_dir=x"],
        2,
        "rehearse has no argument 'modle_dir' (nearest: 'model_dir').",
        "in parse_config",
    ),
    "binding": (
        lambda argv: command.run(rehearse, argv),
        ["--gin.MODEL_DIR"],
        2,
        "'--gin.MODEL_DIR' has no value, expected --gin.NAME=VALUE.",
        "in _parse",
    ),
    "convert": (
        convert.main,
        ["--from=nowhere", "--to=x", "--format=hf"],
        1,
        "There is no model folder",
        "in verify_base",
    ),
    "flag without its value": (
        convert.main,
        ["--from"],
        2,
        "Argument --from: expected one argument.",
        "in error",
    ),
    "library": (
        library_command.main,
        ["list", "--library=nowhere"],
        2,
        "There is no library nowhere",
        "in _run",
    ),
    "plan": (plan, ["--shape=11B"], 2, "There is no slice to plan for", "in parse"),
}


@pytest.mark.parametrize("how", ["flag", "flag first", "variable"])
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_the_stack_is_printed_before_the_sentence(tmp_path, monkeypatch, capsys, failure, how):
    monkeypatch.chdir(tmp_path)
    run, argv, code, sentence, function = failure
    assert run(argv) == code
    silent = capsys.readouterr().err
    assert silent.startswith(f"error: {sentence}") and silent.count("\n") == 1
    if how == "variable":
        monkeypatch.setenv("PEMT_JAX_TRACEBACK", "1")
    elif how == "flag":
        argv = [*argv, "--traceback"]
    elif run is library_command.main:
        argv = [argv[0], "--traceback", *argv[1:]]
    else:
        argv = ["--traceback", *argv]
    assert run(argv) == code
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):\n") and function in shown
    assert shown.endswith(silent)
    monkeypatch.setenv("PEMT_JAX_TRACEBACK", "0")
    assert run(failure[1]) == code
    assert capsys.readouterr().err == silent  # the flag is of one command


@pytest.mark.parametrize(
    "error, code, sentence",
    [
        (UsageError("No."), 2, "No."),
        (PemtError("Full."), 1, "Full."),
        (FileNotFoundError(2, "No such file", "x.txt"), 1, "x.txt: No such file."),
        (OSError("odd"), 1, "odd."),
        (KeyboardInterrupt(), 130, "Stopped by Ctrl-C."),
    ],
)
def test_a_failure_is_its_sentence_and_its_code(capsys, error, code, sentence):
    def fail():
        raise error

    assert exit_code_of(fail) == code
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert report(error) == code


def test_a_reader_that_has_seen_enough_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # put back after the test

    def fail():
        raise BrokenPipeError

    assert exit_code_of(fail) == 0
    print("to nobody")  # what Python flushes at its end
    sys.stdout.close()
    assert capsys.readouterr().err == ""


LINES = {
    "debug": ["debug: three examples were too long"],
    "info": ["info: step 0 is compiled"],
    "warning": ["warning: the disk is nearly full"],
    "error": [],
}


@pytest.mark.parametrize("how", ["flag", "variable"])
@pytest.mark.parametrize("level", LINES)
def test_the_log_is_plain_lines_from_its_level_on(monkeypatch, capsys, level, how):
    flags = ["--gin.MODEL_DIR=x"]
    if how == "flag":
        monkeypatch.setenv("PEMT_JAX_LOG", "error")  # the flag wins
        flags.append(f"--log={level}")
    else:
        monkeypatch.setenv("PEMT_JAX_LOG", level.upper())
    for _ in range(2):  # no line twice
        assert command.run(rehearse, flags) == 0
        levels = list(LINES)[list(LINES).index(level) :]
        expected = [line for name in levels for line in LINES[name]]
        assert capsys.readouterr().err.splitlines() == expected


def test_warnings_alone_are_shown_when_nothing_is_said(capsys):
    assert command.run(rehearse, ["--gin.MODEL_DIR=x"]) == 0
    assert capsys.readouterr().err == "warning: the disk is nearly full\n"


def test_a_wrong_level_is_one_sentence(monkeypatch, capsys):
    sentence = (
        "error: There is no log level 'inf', expected one of debug, info, warning, error "
        "(nearest: 'info').\n"
    )
    assert convert.main(["--from=x", "--to=y", "--format=hf", "--log=inf"]) == 2
    assert capsys.readouterr().err == sentence
    monkeypatch.setenv("PEMT_JAX_LOG", "inf")
    assert library_command.main(["list"]) == 2
    assert capsys.readouterr().err == sentence


def test_an_unknown_flag_is_one_sentence_with_the_nearest_of_the_command():
    parser = Parser(prog="x")
    parser.add_argument("--file")
    commands = parser.add_subparsers()
    commands.add_parser("copy").add_argument("--target")
    for argv, nearest in (
        (["--flie=3"], " (nearest: '--file')"),
        (["copy", "--tagret", "3"], " (nearest: '--target')"),
        (["copy", "--xyzzy"], ""),
    ):
        flag = argv[-1] if argv[-1].startswith("--") else argv[-2]
        with pytest.raises(UsageError) as caught:
            parser.parse_args(argv)
        assert str(caught.value) == (
            f"There is no argument {flag!r}, expected one of those in --help{nearest}."
        )
    with pytest.raises(UsageError, match="Argument --file: expected one argument."):
        parser.parse_args(["--file"])
    assert vars(parser.parse_args(["--file=a", "--traceback"])) == {"file": "a", "traceback": True}
