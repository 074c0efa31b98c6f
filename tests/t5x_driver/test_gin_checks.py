"""A wrong configuration of T5X's commands is one sentence; T5X itself is not needed to say it."""

import os
import subprocess
import sys

import gin
import pytest
from gin import config as gin_config

from pemt_jax.cli import gin_internals
from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError
from pemt_jax.t5x import gin_checks


@gin.configurable(module="checks")
def checked_model(steps=None, seed=None):
    return steps, seed


@gin.configurable(module="checks.utils")
def DatasetConfig(pack=False):  # noqa: N802  (T5X's name)
    return pack


@gin.configurable(module="checks")
def run_script(model=None):
    return model


MODEL = """
STEPS = 3
run_script.model = %MODEL
MODEL = @pemt/gin.singleton()
pemt/gin.singleton.constructor = @checked_model
checked_model.steps = %STEPS
train/checks.utils.DatasetConfig.pack = False
"""


@pytest.fixture(autouse=True)
def gin_of_its_own(monkeypatch, tmp_path):
    folders, readers = list(gin_config._LOCATION_PREFIXES), list(gin_config._FILE_READERS)
    monkeypatch.setattr(gin_checks, "OURS", ("checks.checked_model",))
    gin.clear_config()
    gin_internals.look_for_files_in([str(tmp_path)])
    yield
    gin.clear_config()
    gin_config._LOCATION_PREFIXES[:], gin_config._FILE_READERS[:] = folders, readers


@pytest.mark.parametrize(
    "more, sentence",
    [
        ("", None),
        ("MODEL_DIR = '/x'\nCHECKPOINT_PATH = 'gs://b/x'", None),
        (
            "MODEL = @checked_model()",
            r"MODEL is @.*checked_model\(\), expected that of .* comes before it",
        ),
        ("STEPS = %gin.REQUIRED", "There is no value for STEPS, expected --gin.STEPS="),
        ("checked_model.seed = %SEED", "There is no value for SEED"),
        ("STEPS = %OTHER\nOTHER = %STEPS", "is its own value"),
        ("MODEL_DIR = 'runs/x'", "MODEL_DIR is 'runs/x', expected an absolute path"),
        ("CHECKPOINT_PATH = 'x'", "CHECKPOINT_PATH is 'x', expected an absolute path"),
        ("infer_eval/checks.utils.DatasetConfig.pack = True", "pack = True, expected False"),
        (
            "PACK = True\ntrain/checks.utils.DatasetConfig.pack = %PACK",
            "pack = True, expected False",
        ),
    ],
)
def test_what_is_found_before_anything_is_built(more, sentence):
    gin.parse_config(MODEL + more)
    if sentence is None:
        gin_checks.check({})
    else:
        with pytest.raises(UsageError, match=sentence):
            gin_checks.check({})


def test_a_configuration_without_a_model_of_ours_is_left_alone():
    gin.parse_config("MODEL_DIR = 'relative'\nchecks.utils.DatasetConfig.pack = True\n")
    gin_checks.check({})


def test_a_macro_that_no_file_or_flag_reads_is_named(tmp_path):
    (tmp_path / "size.gin").write_text("RATE = 0.1\nchecked_model.seed = %RATE\n")
    (tmp_path / "ours.gin").write_text("include 'size.gin'\n" + MODEL + "checked_model.seed = 3\n")
    (tmp_path / "mine.gin").write_text("STPES = 5\n")
    gin.parse_config_file("ours.gin")
    gin_checks.check_macros(["ours.gin"], ["STEPS = 4"])  # RATE was read before it was replaced
    gin.parse_config("RATE = 0.2\n")
    with pytest.raises(UsageError, match=r"RATE is set by --gin.RATE=\.\.\. but nothing reads it"):
        gin_checks.check_macros(["ours.gin"], ["RATE = 0.2"])
    gin.parse_config_file("mine.gin")
    with pytest.raises(UsageError, match="STPES is set by a gin file .*nearest: 'STEPS'"):
        gin_checks.check_macros(["ours.gin", "mine.gin"], [])
    gin_checks.check_macros(["ours.gin", "mine.gin"], ["checked_model.steps = %STPES"])


def test_only_failures_of_ours_are_made_a_sentence(monkeypatch, tmp_path):
    def caught(action) -> OSError:
        with pytest.raises(OSError) as found:
            action()
        return found.value

    os.mkfifo(tmp_path / "pipe")
    handler = gin_checks.Sentence()
    assert handler.wants(UsageError("Found x, expected y."))
    assert handler.wants(caught(lambda: storage.check_plain(tmp_path / "pipe")))
    assert not handler.wants(caught(lambda: open(tmp_path / "none")))  # T5X's or a user's
    assert not handler.wants(ValueError("of T5X"))
    monkeypatch.setenv("PEMT_JAX_TRACEBACK", "1")
    assert not handler.wants(UsageError("Found x, expected y."))


def test_a_program_of_absl_ends_with_the_sentence_and_its_exit_code():
    code = """
from absl import app
import gin
from pemt_jax.common.errors import UsageError
from pemt_jax.t5x import gin_checks

@gin.configurable
def fail():
    raise UsageError("Found x, expected y.")

gin_checks.install()
app.run(lambda argv: fail())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=120
    )
    assert (done.returncode, done.stderr) == (2, "error: Found x, expected y.\n")
