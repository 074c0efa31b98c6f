"""What the package reads of gin's internals: each as expected, and read in one module only."""

import ast
import importlib.metadata
import inspect
import os
import tokenize
from pathlib import Path

import gin
import jax
import pytest
from gin import config as gin_config

from pemt_jax.cli import gin_internals
from pemt_jax.common.errors import PemtError, UsageError

CHECKOUT = Path(__file__).parents[2]
VERSION = importlib.metadata.version("gin-config")


def changed(function) -> str:
    """The message of a failed check."""
    return f"gin-config {VERSION} behaves differently in gin_internals.{function.__name__}"


@gin.configurable(module="internals.test")
def brew(leaves=None, minutes: int = 3):
    return leaves, minutes


@gin.configurable(module="internals.test")
def pour(cup="small"):
    return cup


def unregistered():
    pass


@pytest.fixture(autouse=True)
def empty_configuration():
    """Each check starts and leaves gin without bindings."""
    folders, readers = list(gin_config._LOCATION_PREFIXES), list(gin_config._FILE_READERS)
    gin.clear_config()
    yield
    gin.clear_config()
    gin_config._LOCATION_PREFIXES[:], gin_config._FILE_READERS[:] = folders, readers


# One call of each function that reads a name of gin.config.
READERS = {
    "_LOCATION_PREFIXES": gin_internals.searched_folders,
    "_FILE_READERS": lambda: gin_internals.look_for_files_in([]),
    "_IMPORTS": gin_internals.import_lines,
    "ImportManager": gin_internals.import_lines,
    "ParserDelegate": lambda: gin_internals.recorded_macros().__enter__(),
    "_inverse_lookup": lambda: gin_internals.selector_of(brew),
    "_REGISTRY": gin_internals.registered_names,
    "_CONFIG": gin_internals.bindings,
    "iterate_references": gin_internals.macros_in_force,
    "ConfigurableReference": lambda: gin_internals.macro_of(3),
    "macro": lambda: gin_internals.macro_of(gin_internals.reference_to("LEAVES")),
    "parse_value": lambda: gin_internals.reference_to("LEAVES"),
    "_FINALIZE_HOOKS": lambda: gin_internals.check_before_others(print),
}


@pytest.mark.parametrize("name", READERS)
def test_gin_has_every_name_that_is_used(name):
    assert hasattr(gin_config, name), f"gin-config {VERSION} has no gin.config.{name}"


def test_the_table_of_names_is_complete():
    """The check above covers all that the module reads through `_gin`."""
    tree = ast.parse(inspect.getsource(gin_internals))
    used = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_gin"
    }
    assert used == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_a_name_that_gin_lost_is_one_sentence_with_its_version(monkeypatch, name):
    reader = READERS[name]
    monkeypatch.delattr(gin_config, name)
    with pytest.raises(PemtError) as caught:
        reader()
    assert not isinstance(caught.value, UsageError)
    assert str(caught.value) == (
        f"gin-config {VERSION} has no gin.config.{name}, expected it as in gin-config 0.5.0."
    )


def test_files_are_looked_for_in_the_given_folders_only(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "tea.gin").write_text("brew.minutes = 5\n")
    monkeypatch.chdir(tmp_path / "here")
    gin_internals.look_for_files_in([str(tmp_path / "there")])
    assert gin_internals.searched_folders() == [tmp_path / "there"], changed(
        gin_internals.searched_folders
    )
    gin.parse_config_file("tea.gin")
    assert brew() == (None, 5), changed(gin_internals.look_for_files_in)
    gin_internals.look_for_files_in([])
    with pytest.raises(OSError):
        gin.parse_config_file("tea.gin")


def test_the_imports_of_all_files_are_known():
    gin.parse_config("import os.path\n")
    gin.parse_config(
        "from __gin__ import dynamic_registration\nfrom email import message as post\n"
    )
    assert gin_internals.import_lines() == [
        "from __gin__ import dynamic_registration",
        "from email import message as post",
        "import os.path",
    ], changed(gin_internals.import_lines)


def test_macros_are_recorded_where_a_later_binding_replaces_them():
    before = gin_config.ParserDelegate.macro
    with gin_internals.recorded_macros() as read:
        gin.parse_config("brew.leaves = %LEAVES\nbrew.minutes = [%LONG, {'a': %kitchen/SHORT}]\n")
        gin.parse_config("brew.leaves = 'mint'\n")
    assert read == {"LEAVES", "LONG", "kitchen/SHORT"}, changed(gin_internals.recorded_macros)
    assert gin_config.ParserDelegate.macro is before
    assert gin_internals.macros_in_force() == {"LONG", "kitchen/SHORT"}, changed(
        gin_internals.macros_in_force
    )


def test_macros_are_found_in_files_that_are_parsed_already(tmp_path):
    (tmp_path / "tea.gin").write_text("include 'more.gin'\nbrew.leaves = %LEAVES\n")
    (tmp_path / "more.gin").write_text("include 'tea.gin'\nx.y = [@not.known(), %kitchen/SHORT]\n")
    gin_internals.look_for_files_in([str(tmp_path)])
    found = gin_internals.macros_read_in(["tea.gin"], ["brew.minutes = %LONG", "LONG = 3"])
    assert found == {"LEAVES", "kitchen/SHORT", "LONG"}
    assert gin_internals.macro_values() == {}  # nothing was bound


def test_a_check_comes_before_those_of_gin(monkeypatch):
    monkeypatch.setattr(gin_config, "_FINALIZE_HOOKS", list(gin_config._FINALIZE_HOOKS))

    def check(bindings):
        raise UsageError(f"Found {len(bindings)} bindings.")

    gin_internals.check_before_others(check)
    gin.parse_config("brew.leaves = %gin.REQUIRED")
    with pytest.raises(UsageError, match="Found 1 bindings"):
        gin.finalize()


@pytest.mark.parametrize(
    "text, count",
    [("x = 3\n", 1), ("x = @nothing.known()\n", 1), ("x = [%MACRO]\n", 1), ("x = 1\ny = 2\n", 2)],
)
def test_statements_are_counted_whatever_they_refer_to(text, count):
    assert gin_internals.statements_in(text) == count, changed(gin_internals.statements_in)


@pytest.mark.parametrize("text", ["x = runs/movies\n", "x = ['a'\n"])
def test_what_is_no_statement_is_an_error_of_syntax(text):
    with pytest.raises((SyntaxError, tokenize.TokenError)):
        gin_internals.statements_in(text)


def test_what_is_registered():
    assert gin_internals.selector_of(brew) == "internals.test.brew", changed(
        gin_internals.selector_of
    )
    assert gin_internals.selector_of(unregistered) is None
    name, function = gin_internals.registered("internals.test.brew")
    assert (name, function.__name__, function.__module__) == ("brew", "brew", __name__), changed(
        gin_internals.registered
    )
    assert inspect.signature(function).parameters["minutes"].annotation is int
    assert gin_internals.registered_as("test.brew") == [function], changed(
        gin_internals.registered_as
    )
    assert gin_internals.registered_as("brow") == []
    names = gin_internals.registered_names()
    assert {"brew", "pour"} <= set(names), changed(gin_internals.registered_names)
    assert not any(name in ("macro", "gin.macro", "constant") for name in names)


def test_what_is_bound():
    gin.parse_config("brew.leaves = %LEAVES\nLEAVES = 'mint'\nlate/brew.minutes = 9\nFREE = 1\n")
    reference = gin_internals.reference_to("LEAVES")
    assert gin_internals.bindings() == [
        ("internals.test.brew", {"leaves": reference}),
        ("internals.test.brew", {"minutes": 9}),
    ], changed(gin_internals.bindings)
    assert gin_internals.bound_arguments(brew) == {"leaves": reference}, changed(
        gin_internals.bound_arguments
    )
    assert gin_internals.bound_arguments(pour) == {}
    assert gin_internals.macro_values() == {"LEAVES": "mint", "FREE": 1}, changed(
        gin_internals.macro_values
    )
    assert gin_internals.macros_in_force() == {"LEAVES"}, changed(gin_internals.macros_in_force)


def test_references():
    reference = gin_internals.reference_to("kitchen/LEAVES")
    assert gin_internals.macro_of(reference) == "kitchen/LEAVES", changed(gin_internals.macro_of)
    gin.parse_config("brew.leaves = @pour()\nbrew.minutes = %gin.REQUIRED\n")
    bound = gin_internals.bound_arguments(brew)
    assert [gin_internals.macro_of(bound[name]) for name in ("leaves", "minutes")] == [None, None]
    assert gin_internals.macro_of("LEAVES") is None
    assert gin_internals.is_required(bound["minutes"]), changed(gin_internals.is_required)
    assert not gin_internals.is_required(bound["leaves"]) and not gin_internals.is_required(None)


class Full(Exception):
    def __init__(self, place, size):
        super().__init__(f"{place} is full")
        self.size = size


@gin.configurable(module="internals.test")
def boil():
    raise Full("pot", 3)


@gin.configurable(module="internals.test")
def serve(tea=None):
    return tea


def test_the_raised_exception_is_found_behind_those_of_gin():
    gin.parse_config("serve.tea = @boil()\n")
    with pytest.raises(Full) as caught:
        serve()
    assert "In call to configurable" in str(caught.value), f"gin-config {VERSION} adds no path"
    found = gin_internals.original(caught.value)
    assert (type(found), str(found), found.size) == (Full, "pot is full", 3), changed(
        gin_internals.original
    )
    plain = ValueError("x")
    assert gin_internals.original(plain) is plain


def test_files_of_gin_are_known():
    with pytest.raises(ValueError) as caught:
        gin.parse_config("brew.sugar = 3\n")
    innermost = caught.traceback[-1].path
    assert gin_internals.is_file_of_gin(str(innermost)), changed(gin_internals.is_file_of_gin)
    assert not gin_internals.is_file_of_gin(os.path.abspath(__file__))


def uses_of_gin_config(source: str) -> list[int]:
    """The lines that reach gin.config or gin.config_parser, by import, attribute or `getattr`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = any(alias.name.startswith("gin.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            internal = names & {"config", "config_parser", "selector_map"} or any(
                name.startswith("_") for name in names
            )
            module = node.module or ""
            found = module.startswith("gin.") or (module == "gin" and internal)
        elif isinstance(node, ast.Attribute):
            found = ast.unparse(node) in ("gin.config", "gin.config_parser")
        else:
            found = isinstance(node, ast.Call) and ast.unparse(node).startswith("getattr(gin,")
        if found:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "source, count",
    [
        ("import gin\ngin.clear_config()", 0),
        ("from gin import config", 1),
        ("from gin import config as c\nc._CONFIG", 1),
        ("import gin.config\nprint(gin.config._CONFIG)", 2),
        ("from gin.config import _REGISTRY", 1),
        ("import gin\ngin.config._CONFIG", 1),
        ("import gin\ngetattr(gin, 'config')", 1),
        ("from pemt_jax import config", 0),
    ],
)
def test_a_use_of_gins_internals_is_recognised(source, count):
    assert len(uses_of_gin_config(source)) == count


def test_no_other_module_reads_gins_internals():
    files = {path for folder in ("pemt_jax", "tasks") for path in (CHECKOUT / folder).rglob("*.py")}
    assert len(files) > 90
    found = [
        f"{path}:{line}"
        for path in sorted(files - {CHECKOUT / "pemt_jax" / "cli" / "gin_internals.py"})
        for line in uses_of_gin_config(path.read_text(encoding="utf-8"))
    ]
    assert not found, "gin.config is read outside pemt_jax/cli/gin_internals.py"


def test_the_modules_of_a_text_are_named_and_not_imported():
    text = "from __gin__ import dynamic_registration\nimport not.here\nfrom email import message\n"
    text += "not.here.brew.minutes = @unknown()\n"
    assert gin_internals.modules_in(text) == ["not.here", "email.message"], changed(
        gin_internals.modules_in
    )
    assert gin_internals.import_lines() == []


def test_an_exception_from_cpp_is_its_own_original():
    """A lost peer is one, in a run that gin has called."""
    error = jax.errors.JaxRuntimeError("UNAVAILABLE: the connection is closed")
    assert gin_internals.original(error) is error
