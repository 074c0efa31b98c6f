"""Where T5X is not installed: everything else works, and the driver says how to install it.

These run everywhere; what needs T5X is in test_t5x.py.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pemt_jax
from pemt_jax import configs, tasks
from pemt_jax.cli import command as cli
from pemt_jax.train import train

PACKAGE = Path(pemt_jax.__file__).resolve().parent
BRIDGE = ("bridge", "model", "state")
GIN = sorted(path.name for path in (Path(configs.__file__).parent / "t5x").glob("*.gin"))
FLAGS = [
    "MODEL_DIR=x",
    "MIXTURE_OR_TASK_NAME=vader_movies",
    "TRAIN_STEPS=1",
    "INITIAL_CHECKPOINT_PATH=x",
    "EXPERTS=('a',)",
]


@pytest.fixture
def no_t5x(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "t5x"]:
        monkeypatch.delitem(sys.modules, name)
    for name in BRIDGE:
        monkeypatch.delitem(sys.modules, f"pemt_jax.t5x.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "t5x", None)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_nothing_but_the_bridge_imports_t5x_and_nothing_else_imports_the_bridge():
    files = [*PACKAGE.rglob("*.py"), *Path(tasks.__file__).resolve().parent.rglob("*.py")]

    def users(package: str) -> set[Path]:
        wanted = re.compile(rf"{package}(\..*)?")
        return {path for path in files if any(map(wanted.fullmatch, imports(path)))}

    assert users("t5x") == {PACKAGE / "t5x" / "bridge.py", PACKAGE / "t5x" / "state.py"}
    assert {path.parent for path in users(r"pemt_jax\.t5x")} == {PACKAGE / "t5x"}


@pytest.mark.parametrize("name", GIN)
def test_a_gin_file_of_the_driver_says_how_to_install_t5x(no_t5x, name, capsys):
    flags = [f"--gin.{flag}" for flag in FLAGS]
    assert cli.run(train, [f"--gin_file=t5x/{name}", *flags]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message
    assert "The T5X driver needs T5X, which cannot be imported here" in message
    assert "installed by the three lines in pemt_jax/t5x/README.md" in message


@pytest.mark.slow
def test_all_commands_answer_without_t5x(tmp_path):
    mains = ("train", "evaluate", "predict", "library", "tasks")
    code = (
        "import runpy, sys; sys.modules['t5x'] = None; sys.argv = [sys.argv[1], '--help']; "
        "runpy.run_module('pemt_jax.' + sys.argv[0], run_name='__main__')"
    )
    for main in mains:
        done = subprocess.run(
            [sys.executable, "-c", code, main],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
        )
        assert done.returncode == 0 and "--help" in done.stdout, done.stderr


def private_names(path: Path) -> set[str]:
    """Attributes with an underscore in front of objects that are not the module's own `self`."""
    tree = ast.parse(path.read_text())
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    return {name for name in names if re.fullmatch(r"_[a-z]\w*", name)}


@pytest.mark.parametrize("name", BRIDGE)
def test_the_bridge_uses_no_private_name(name):
    """It defines one that T5X calls, `_compute_logits`, which BaseTransformerModel requires."""
    assert private_names(PACKAGE / "t5x" / f"{name}.py") == set()
    methods = {
        node.name
        for node in ast.walk(ast.parse((PACKAGE / "t5x" / f"{name}.py").read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    private = {method for method in methods if re.fullmatch(r"_[a-z]\w*", method)}
    assert private == ({"_compute_logits"} if name == "bridge" else set())


def test_the_gin_files_pack_nothing():
    text = "".join((Path(configs.__file__).parent / "t5x" / name).read_text() for name in GIN)
    assert "pack = True" not in text
    assert "train/utils.DatasetConfig:\n    pack = False" in text
    assert "train_eval/utils.DatasetConfig.pack = False" in text
