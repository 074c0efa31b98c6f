"""What every command has: one sentence for a wrong flag, the stack behind it, the log."""

import errno
import io
import logging
import subprocess
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


def test_a_record_is_printed_once_whatever_handlers_libraries_add(tmp_path, capsys):
    other = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(other)
    try:
        command.run(rehearse, [f"--gin.MODEL_DIR={tmp_path}", "--log=info"])
    finally:
        logging.getLogger().removeHandler(other)
    assert capsys.readouterr().err.count("step 0 is compiled") == 1


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


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The sentence with which `rehearse` fails on a gin file, and the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(content: bytes, *flags: str) -> tuple[int, str]:
        (tmp_path / "x.gin").write_bytes(content)
        code = command.run(rehearse, ["--gin_file=x.gin", "--gin.MODEL_DIR=x", *flags])
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("error: ") and error.count("\n") == 1
        return code, error

    return run


@pytest.mark.parametrize(
    "content, found",
    [
        ("# caf\u00e9\n".encode("latin-1"), "x.gin is no UTF-8 text (byte 0xe9 in line 1)"),
        ("# caf\u00e9\n".encode("utf-16"), "x.gin is no UTF-8 text (it looks like UTF-16)"),
        (bytes(range(256)), "x.gin is no UTF-8 text"),
    ],
)
def test_a_gin_file_in_another_encoding_is_one_sentence(refused, content, found):
    code, sentence = refused(content)
    assert code == 1 and found in sentence


def test_a_gin_file_with_a_byte_order_mark_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gin").write_bytes("\ufeffMODEL_DIR = 'x'\n".encode())
    assert command.run(rehearse, ["--gin_file=x.gin"]) == 0


def test_a_module_that_a_gin_file_imports_is_named_where_it_fails(refused, tmp_path):
    (tmp_path / "users_tasks.py").write_text("\n\n1 / 0\n")
    imports = b"from __gin__ import dynamic_registration\nimport users_tasks\n"
    code, sentence = refused(imports)
    assert code == 2 and "An import of the gin file x.gin failed at " in sentence
    assert "users_tasks.py line 3: ZeroDivisionError: division by zero." in sentence


@pytest.mark.parametrize(
    "flag, found",
    [
        ("--gin.rehearse.fail=[1]", "rehearse.fail is [1], expected True or False"),
        ("--gin.rehearse.fail=('a',)", "rehearse.fail is ('a',), expected True or False"),
        ("--gin.rehearse.fail={'a': 1}", "expected True or False"),
        (f"--gin.rehearse.fail={'x' * 10**5}", "is 'xxx"),
        (f"--gin.{'x' * 10**5}=3", "xxx..."),
        ("--gin.rehearse.fail='\\x1b[31m'", "\\x1b[31m"),
    ],
)
def test_a_value_of_another_type_is_named_shortly_and_plainly(refused, flag, found):
    code, sentence = refused(b"", flag)
    assert code == 2 and found in sentence and len(sentence) < 600 and "\x1b" not in sentence


def test_a_sentence_has_no_control_characters_and_an_end(capsys):
    report(PemtError("a\x1b[31m\nb " + "c" * 10**5 + " " + "d " * 10**5))
    line = capsys.readouterr().err
    assert "a\\x1b[31m\\nb ccc" in line and line.count("\n") == 1 and len(line) < 5000


def test_what_cannot_be_written_says_where(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    report(PermissionError(errno.EACCES, "Permission denied", f"{tmp_path}/cache/tokens"))
    sentence = capsys.readouterr().err
    assert "cache/tokens: Permission denied, expected $PEMT_JAX_CACHE to be" in sentence

    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    for action in (lambda: print("x"), lambda: Parser(prog="x").parse_args(["--help"])):
        assert exit_code_of(action) == 1
        assert capsys.readouterr().err == "error: The output: No space left on device.\n"


def test_a_platform_that_is_not_here_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")

    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu': INTERNAL: no libtpu.so\nmore")

    assert exit_code_of(devices) == 2
    assert "JAX_PLATFORMS=tpu names ('tpu': INTERNAL: no libtpu.so), exp" in capsys.readouterr().err


def test_a_path_that_leads_to_itself_is_one_sentence(tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    assert exit_code_of((tmp_path / "loop").resolve) == 2
    assert f"{tmp_path}/loop' is a link that leads to itself" in capsys.readouterr().err


INTERRUPTED = """
import sys
sys.argv[0], sys.orig_argv = {argv0!r}, ["python", "-m", {module!r}]
import pemt_jax
import interrupted
"""


@pytest.mark.parametrize(
    "argv0, module, code",
    [("-m", "pemt_jax.train", 130), ("/bin/pemt-jax", "", 130), ("-m", "mine", -2)],
)
def test_ctrl_c_during_an_import_is_a_sentence_in_programs_of_ours(tmp_path, argv0, module, code):
    (tmp_path / "interrupted.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n"
    )
    program = INTERRUPTED.format(argv0=argv0, module=module)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    if code == 130:
        assert done.stderr == "error: Stopped by Ctrl-C.\n"
