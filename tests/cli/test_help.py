"""What --help of a training command lists: methods, optimizers and macros that can be chosen."""

import inspect
import types

import pytest

from pemt_jax import optimizers
from pemt_jax.cli import command, help
from pemt_jax.model.methods import METHODS


def train(model_dir: str, method: str = "pemt_target", seed: int = 0):
    """Train nothing."""


def evaluate(model_dir: str, split: str = "test"):
    """Evaluate nothing."""


@pytest.fixture
def printed(capsys):
    """The text that --help of a main prints."""

    def printed(main):
        with pytest.raises(SystemExit) as ended:
            command.run(main, ["--help"])
        assert ended.value.code == 0
        output, error = capsys.readouterr()
        assert error == ""
        return output

    return printed


def section(text: str, title: str) -> list[str]:
    """The lines under a title, which are indented."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title)) + 1
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("  ")), len(lines))
    return [line.strip() for line in lines[start:end]]


def test_methods_and_macros_are_listed_where_a_method_can_be_chosen(printed):
    text = printed(train)
    assert section(text, "Defaults, set as --gin.train.NAME") == [
        "model_dir",
        "method = 'pemt_target'",
        "seed = 0",
    ]
    methods = dict(line.split("  ", 1) for line in section(text, "Methods"))
    assert {name: summary.strip() for name, summary in methods.items()} == {
        name: method.summary for name, method in METHODS.items()
    }
    macros = section(text, "Macros of runs/common.gin")
    assert {"MODEL_DIR", "MIXTURE_OR_TASK_NAME", "TRAIN_STEPS", "LEARNING_RATE"} <= set(macros)
    assert all(name.isupper() for name in macros) and len(set(macros)) == len(macros)


def test_optimizers_are_listed_from_their_table(printed, monkeypatch):
    chains = types.MappingProxyType({"adamw": None, "adafactor": None})
    monkeypatch.setattr(optimizers, "CHAINS", chains, raising=False)
    assert section(printed(train), "Optimizers") == ["adamw", "adafactor"]


def test_another_main_lists_its_own_arguments_only(printed):
    text = printed(evaluate)
    assert section(text, "Defaults") == ["model_dir", "split = 'test'"]
    for title in ("Methods", "Optimizers", "Macros"):
        assert title not in text


def test_every_macro_of_the_file_is_found():
    text = (help.CONFIGS / help.COMMON).read_text(encoding="utf-8")
    assigned = [
        line.split("=")[0].strip()
        for line in text.splitlines()
        if "=" in line and line[0].isupper()
    ]
    assert help.macros() == assigned and len(assigned) > 10


def test_required_arguments_have_no_default():
    parameters = inspect.signature(train).parameters
    assert "\n  model_dir\n" in help.epilog(train, parameters)
