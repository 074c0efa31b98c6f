"""Experts enter and leave a library whole, verified, and never over another one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_BASE

from pemt_jax.cli.library_command import main
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.storage import new_folder
from pemt_jax.common.weights import load_weights
from pemt_jax.library import artefact
from pemt_jax.library import expert as library
from pemt_jax.library import transfer as exchange


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(Path(folder).rglob("*"))
    }


@pytest.fixture
def elsewhere(save_expert, tmp_path):
    """An expert's folder outside of any library."""
    (save_expert("movies") / "movies").rename(tmp_path / "movies")
    (tmp_path / "library").rmdir()
    return tmp_path / "movies"


@pytest.fixture
def command(tmp_path):
    """Run `python -m pemt_jax.library` in tmp_path; return exit code, output, error."""

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "pemt_jax.library", *map(str, arguments)],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"PEMT_JAX_LIBRARY": str(tmp_path / "library")} | environment,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_an_added_expert_is_the_same_bytes(elsewhere, tmp_path):
    expert = exchange.add_expert(tmp_path / "library", elsewhere, "films")
    assert expert.name == "films" and library.expert_names(tmp_path / "library") == ["films"]
    assert contents(tmp_path / "library" / "films") == contents(elsewhere)
    assert exchange.add_expert(tmp_path / "library", elsewhere).name == "movies"
    assert sorted(os.listdir(tmp_path / "library")) == ["films", "movies"]


def test_a_name_that_is_taken_is_refused_and_nothing_changes(elsewhere, tmp_path, save_expert):
    folder = save_expert("movies", seed=9)
    before = contents(folder)
    with pytest.raises(UsageError, match="movies exists already"):
        exchange.add_expert(folder, elsewhere)
    assert contents(folder) == before


def spoil_byte(folder):
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def make_target(folder):
    artefact.write_artefact(
        folder / "t",
        {"x": np.zeros(2)},
        artefact.Card(kind="target", method="adapter", task="t", base_fingerprint=TINY_BASE),
    )
    for name in exchange.FILES:
        (folder / "t" / name).replace(folder / name)
    (folder / "t").rmdir()


def link_weights(folder):
    (folder / "weights.safetensors").rename(folder.parent / "outside")
    (folder / "weights.safetensors").symlink_to("../outside")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_byte, "damaged or exchanged"),
        (make_target, "target artefact, expected an expert"),
        (link_weights, "the link 'weights.safetensors'"),
        (lambda f: (f / "run.py").write_text("print()"), "the file 'run.py', expected the plain"),
        (lambda f: (f / "more").mkdir(), "the folder 'more'"),
        (lambda f: (f / "card.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "card.json").write_text("[" * 9999), "is no JSON"),
        (lambda f: (f / "card.json").unlink(), "no card.json"),
        (lambda f: (f / "weights.safetensors").unlink(), "no weights.safetensors"),
    ],
)
def test_what_is_no_whole_expert_does_not_enter(elsewhere, tmp_path, spoil, message):
    spoil(elsewhere)
    with pytest.raises(PemtError, match=message):
        exchange.add_expert(tmp_path / "library", elsewhere)
    assert not (tmp_path / "library").exists()


@pytest.mark.parametrize("name", ["../movies", "a/b", ".hidden", "/tmp/x"])
def test_a_name_cannot_leave_the_library(elsewhere, tmp_path, name):
    with pytest.raises(UsageError, match="is no name"):
        exchange.add_expert(tmp_path / "library", elsewhere, name)


def test_a_failing_copy_leaves_nothing(elsewhere, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange.shutil, "copyfile", full_disk)
    with pytest.raises(PemtError, match="No space left"):
        exchange.add_expert(tmp_path / "library", elsewhere)
    assert os.listdir(tmp_path / "library") == []


def test_a_new_folder_does_not_replace_what_came_meanwhile(tmp_path):
    with pytest.raises(UsageError, match="exists already"), new_folder(tmp_path / "x") as partial:
        (partial / "mine").touch()
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "theirs").touch()
    assert sorted(contents(tmp_path)) == ["x", "x/theirs"]


def test_remove_takes_experts_only(save_expert, tmp_path):
    for name in ("movies", "nyt", "linked"):
        folder = save_expert(name)
    exchange.remove_expert(folder, "movies")
    assert sorted(os.listdir(folder)) == ["linked", "nyt"]
    (folder / "nyt" / "notes.txt").touch()
    with pytest.raises(PemtError, match="the file 'notes.txt'"):
        exchange.remove_expert(folder, "nyt")
    (folder / "linked").rename(tmp_path / "outside")
    (folder / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(PemtError, match="is a link"):
        exchange.remove_expert(folder, "linked")
    with pytest.raises(UsageError, match="nearest: 'nyt'"):
        exchange.remove_expert(folder, "nty")
    assert len(contents(tmp_path / "outside")) == 2 and (folder / "nyt" / "card.json").exists()


def test_the_commands_bring_an_expert_in_and_out(elsewhere, tmp_path, command):
    assert command("add", elsewhere)[:2] == (0, "movies  added  sha256 " + sha256(elsewhere) + "\n")
    code, output, error = command("export", "movies", "--to", "peft", "--format", "peft")
    assert (code, error) == (0, "") and "without its task prompt" in output
    assert command("export", "movies", "--to", "copy", "--format", "folder")[0] == 0
    assert contents(tmp_path / "copy") == contents(elsewhere)
    code, output, error = command("import", "peft", "--format", "peft", "--name", "again")
    assert (code, error) == (0, "") and sha256(elsewhere) in output
    again = load_weights(tmp_path / "library" / "again" / "weights.safetensors")
    for path, array in load_weights(elsewhere / "weights.safetensors").items():
        np.testing.assert_array_equal(again[path], array)
    assert command("verify")[1].count("  ok  ") == 2
    assert command("remove", "movies") == (0, "movies  removed\n", "")
    assert command("verify")[1].count("  ok  ") == 1


def sha256(folder):
    return json.loads((folder / "card.json").read_text())["sha256"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("ad", "movies"), "(nearest: 'add')"),
        (("remove",), "NAME"),
        (("remove", "x"), "There is no library"),
        (("add", "moves"), "expected an artefact (nearest: 'movies')"),
        (("export", "x", "--to", "d"), "--format"),
        (("import", "p", "--format", "pefd", "--name", "x"), "'pefd'"),
        (("import", "p", "--format", "peft"), "Expected --name"),
        (("import", "p", "--format", "peft", "--name", "../x"), "is no name"),
        (("import", "p", "--format", "peft", "--name", "x"), "no adapter_config.json"),
        (("import", "p", "--format", "peft", "--model_dir", "x"), "expected no --model_dir"),
        (("import", "p", "--format", "reference", "--name", "x"), "expected --base"),
        (("list", "--librarry", "x"), "--librarry"),
    ],
)
def test_wrong_use_is_one_sentence(elsewhere, capsys, monkeypatch, tmp_path, arguments, message):
    from pemt_jax.cli.library_command import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEMT_JAX_LIBRARY", "library")
    code = main(arguments)
    output, error = capsys.readouterr()
    assert code == (1 if arguments[0] == "add" else 2) and output == ""
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "library").exists()


def test_a_card_from_elsewhere_does_not_steer_the_terminal(save_expert, expert_arrays, capsys):
    from pemt_jax.cli.library_command import main

    library.save_expert(
        folder := save_expert("nyt"),
        "sly",
        expert_arrays(),
        artefact.Card(
            kind="expert",
            method="pemt_source",
            task="\x1b[2Jtask",
            description="two\nlines",
            base_fingerprint=TINY_BASE,
        ),
    )
    assert main(["list", "--library", str(folder)]) == 0
    assert main(["show", "sly", "--library", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output and "'\\x1b[2Jtask'" in output and "'two\\nlines'" in output


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_an_expert_whose_card_cannot_be_read_is_said(save_expert, tmp_path, capsys, kind):
    library = save_expert("movies")
    card = library / "movies" / "card.json"
    card.unlink()
    card.symlink_to("nowhere") if kind == "link" else os.mkfifo(card)
    for command in ("list", "verify"):
        assert main([command, "--library", str(library)]) == 1
        assert "card.json is no plain file that can be read" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["new", "movies/new"])
def test_nothing_is_exported_into_a_library(save_expert, capsys, inside):
    library = save_expert("movies")
    before = contents(library)
    for form in ("folder", "peft"):
        flags = ["--to", str(library / inside), "--format", form, "--library", str(library)]
        assert main(["export", "movies", *flags]) == 2
        assert "is inside" in capsys.readouterr().err
    assert contents(library) == before
