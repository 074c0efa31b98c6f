"""Importing any module of the package changes nothing that belongs to the whole process."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SETTING = re.compile("JAX_|TF_|XLA_|PEMT_JAX_")
# Other packages change some of these when they are imported, so those are imported first.
PROGRAM = """
import importlib, json, logging, os, signal, sys, threading, warnings

def state():
    import jax
    from absl import logging as absl_logging
    hooks = {
        "sys.excepthook": sys.excepthook,
        "sys.unraisablehook": sys.unraisablehook,
        "threading.excepthook": threading.excepthook,
        "sys.displayhook": sys.displayhook,
        "sys.stdout": sys.stdout,
        "sys.stderr": sys.stderr,
    }
    signals = {str(number): repr(signal.getsignal(number)) for number in signal.valid_signals()}
    loggers = ("root", "absl", "jax", "orbax", "tensorflow", "pemt_jax")
    return {
        "environment": dict(os.environ),
        "filters of warnings": list(map(repr, warnings.filters)),
        "hooks": {name: repr(hook) for name, hook in hooks.items()},
        "importers": list(map(repr, sys.meta_path)),
        "levels of loggers": {name: logging.getLogger(name).level for name in loggers},
        "handlers of loggers": {name: repr(logging.getLogger(name).handlers) for name in loggers},
        "verbosity of absl": absl_logging.get_verbosity(),
        "handlers of signals": signals,
        "configuration of JAX": {name: repr(value) for name, value in jax.config.values.items()},
        "working directory": os.getcwd(),
        "number of threads": threading.active_count(),
    }

theirs, ours = json.load(sys.stdin)
for name in theirs:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
before = state()
for name in ours:
    importlib.import_module(name)
    after = state()
    for kind in before:
        if before[kind] != after[kind]:
            print(json.dumps([name, kind, before[kind], after[kind]]))
    before = after
print(len(ours))
"""


def modules() -> dict[str, Path]:
    """The importable modules of the package, those for T5X's drivers excepted: {name: file}."""
    found = {}
    for folder, package in (("pemt_jax", "pemt_jax"), ("tasks", "pemt_jax.tasks")):
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            parts = path.relative_to(CHECKOUT / folder).with_suffix("").parts
            if parts[0] != "t5x":
                name = ".".join([package, *parts]).removesuffix(".__init__")
                found[name] = path
    return found


def imports_of(path: Path) -> set[str]:
    """The modules of other packages that a file imports when it is imported itself."""
    names, nodes = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif not isinstance(node, ast.FunctionDef):
            nodes += ast.iter_child_nodes(node)
    return {name for name in names if name.partition(".")[0] != "pemt_jax"}


def run(program: str, tmp_path: Path, stdin: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        # Without what the suite sets, or a module that sets the same would not be noticed.
        env={name: value for name, value in os.environ.items() if not SETTING.match(name)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.walk
def test_importing_a_module_changes_no_global_state(tmp_path):
    ours = modules()
    theirs = sorted(set().union(*map(imports_of, ours.values())))
    assert {"jax", "tensorflow", "seqio"} <= set(theirs)
    *changes, count = run(PROGRAM, tmp_path, json.dumps([theirs, list(ours)])).splitlines()
    assert int(count) == len(ours) > 100
    changes = [json.loads(line) for line in changes]
    assert not changes, "\n".join(f"{name} changes the {kind}" for name, kind, *_ in changes)


def test_a_change_is_noticed(tmp_path):
    (tmp_path / "rude.py").write_text(
        "import logging, os, signal, sys, warnings\n"
        "os.environ['RUDE'] = '1'\n"
        "warnings.simplefilter('ignore')\n"
        "sys.excepthook = print\n"
        "sys.meta_path.insert(0, object())\n"
        "logging.getLogger().setLevel('DEBUG')\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    )
    program = f"import sys; sys.path.append({str(tmp_path)!r})\n{PROGRAM}"
    *changes, _ = run(
        program, tmp_path, json.dumps([["jax", "absl.logging"], ["rude"]])
    ).splitlines()
    assert {json.loads(line)[1] for line in changes} == {
        "environment",
        "filters of warnings",
        "hooks",
        "importers",
        "levels of loggers",
        "handlers of signals",
    }


@pytest.mark.parametrize(
    "module", ["pemt_jax", "pemt_jax.cli.console", "pemt_jax.cli.library_command"]
)
def test_a_light_module_imports_neither_jax_nor_tensorflow(tmp_path, module):
    program = (
        f"import sys, {module}; print([name for name in ('jax', 'tensorflow') "
        "if name in sys.modules])"
    )
    assert run(program, tmp_path, "") == "[]\n"


def test_a_checkout_is_complete_without_an_editable_install(tmp_path):
    """`python -m` in a checkout finds the package there, whatever is installed."""
    program = (
        "import sys\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
        f"sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "import importlib.util, pkgutil, pemt_jax.configs\n"
        "tasks = importlib.util.find_spec('pemt_jax.tasks')\n"
        "print(pemt_jax.configs.__file__, *tasks.submodule_search_locations)\n"
        "print(*[found.name for found in pkgutil.iter_modules(pemt_jax.__path__)])"
    )
    found = run(program, tmp_path, "").split()
    assert found[:2] == [str(CHECKOUT / "configs" / "__init__.py"), str(CHECKOUT / "tasks")]
    assert "model" in found and not {"tests", "pemt_jax"} & set(found)  # nothing else is beside it


STARTUP = """
import os, sys, warnings
from absl import logging
from pemt_jax.cli import startup
if "jax first" in sys.argv: import jax
hook = sys.excepthook
startup.startup()
wrapped = sys.excepthook
startup.startup()
assert hook is not wrapped is sys.excepthook
assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"
assert logging.get_verbosity() == logging.ERROR
assert warnings.filters[0][0] == "ignore"
import jax
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("order", ["jax first", "jax later"])
@pytest.mark.parametrize("own", [None, "/of/the/user", ""])
def test_startup_sets_what_an_import_does_not(tmp_path, order, own):
    settings = {"PEMT_JAX_CACHE": str(tmp_path)}
    if own is not None:
        settings["JAX_COMPILATION_CACHE_DIR"] = own
    program = (
        f"import os, sys; os.environ.update({settings}); sys.argv.append({order!r})\n{STARTUP}"
    )
    folder = str(tmp_path / "compiled") if own is None else own
    assert run(program, tmp_path, "") == f"{folder}\n"
