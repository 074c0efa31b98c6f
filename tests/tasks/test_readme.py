"""What tasks/README.md says works: its commands, its gin file and its Python."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gin
import pytest
import seqio

from pemt_jax.tasks import __main__ as command
from pemt_jax.tasks import splits
from pemt_jax.tasks.datasets import EXTRAS, GLUE, MRQA, OTHERS, SOURCES, SUPER_GLUE

README = (Path(__file__).parents[2] / "tasks" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FEW_SHOT, FROM_ROWS, MODULE = (text for language, text in BLOCKS if language == "python")
COMMANDS = [
    shlex.split(line, comments=True)[3:]
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with two files of examples and a cache of its own."""
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev"):
        Path(f"{name}.jsonl").write_text('{"text": "So good.", "label": "good"}\n' * 2)
    before = set(seqio.TaskRegistry.names())
    yield tmp_path
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.get("pemt_cb")._cache_dir = None
    seqio.set_global_cache_dirs([])


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands(folder, tiny_data, capsys, arguments):
    assert command.main(arguments) == 0
    assert capsys.readouterr().err == ""


def test_the_table_of_mixtures_is_the_registrys():
    rows = re.findall(r"^\| (?:`(\w+)`|\(none\)) \| (.*) \|$", README, re.MULTILINE)
    table = {name: set(re.findall(r"`(\w+)`", tasks)) for name, tasks in rows}
    assert table.pop("") == {row.name for row in EXTRAS}
    assert table.pop("vader_sources") - {"vader_amazon"} == members("vader_sources")
    assert not table.pop("pemt_targets") and len(members("pemt_targets")) == 17
    assert table == {name: members(name) for name in table}
    assert set().union(*table.values()) == {
        row.name for row in (*SOURCES, *GLUE, *SUPER_GLUE, *MRQA, *OTHERS)
    }


def members(mixture):
    return {task.name for task in seqio.MixtureRegistry.get(mixture).tasks}


def test_the_number_of_examples_is_set_from_python():
    try:
        with gin.unlock_config():
            exec(FEW_SHOT, {})
        assert splits.FewShot() == splits.FewShot(shots=64, seed=1)
    finally:
        gin.clear_config()


def test_a_task_over_rows(folder):
    exec(FROM_ROWS, {})
    source = seqio.TaskRegistry.get("reviews").source
    assert [len(source.rows(split)) for split in source.splits] == [2, 1, 1]


def test_a_module_of_tasks(folder, tfds_folder):
    Path("my_tasks.py").write_text(MODULE)
    line = "python -m pemt_jax.tasks --import my_tasks show my_boolq"
    assert f"`{line}`" in README
    result = subprocess.run(
        [sys.executable, *shlex.split(line)[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, "TFDS_DATA_DIR": str(tfds_folder)},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "inputs   'passage: It is big. question: is it small'\ntargets  'no'\n" in result.stdout


def test_its_length_and_its_links():
    assert len(README.splitlines()) <= 145
    for path in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (Path(__file__).parents[2] / "tasks" / path).is_file(), path
