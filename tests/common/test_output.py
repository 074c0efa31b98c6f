"""Output that a user names: plain files at once, pipes and devices by writing, nothing lost."""

import os
import threading

import pytest

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.writing.output import output


def write(target, inputs=()):
    with output("OUTPUT_FILE", str(target), [str(name) for name in inputs]) as file:
        file.write("text\n")


def test_a_pipe_is_written_and_stays_a_pipe(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join(10)
    assert got == ["text\n"] and pipe.is_fifo()


def test_standard_output_by_its_name(capfd):
    write("/dev/stdout")
    assert capfd.readouterr().out == "text\n"


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text\n"


def test_a_failure_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), output("OUTPUT_FILE", str(tmp_path / "file")) as file:
        file.write("half")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["in", "./in", "link", "hard"])
def test_the_input_is_no_output_however_it_is_spelt(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("precious")
    (tmp_path / "link").symlink_to("in")
    os.link(tmp_path / "in", tmp_path / "hard")
    with pytest.raises(UsageError, match="is the input .*in, expected another file"):
        write(name, [tmp_path / "in"])
    assert (tmp_path / "in").read_text() == "precious"


@pytest.mark.parametrize("inside", ["weights.safetensors", "new.txt", "sub/new.txt"])
def test_nothing_is_written_into_an_artefact(save_expert, inside):
    expert = save_expert("movies") / "movies"
    with pytest.raises(UsageError, match=r"is inside \S+movies, an artefact"):
        write(expert / inside)
    assert sorted(os.listdir(expert)) == ["card.json", "weights.safetensors"]


def test_the_log_of_a_run_is_no_output(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match=r"metrics\.jsonl is a file of a run"):
        write(tmp_path / "metrics.jsonl")


def test_a_folder_is_no_output(tmp_path):
    with pytest.raises(PemtError, match="Is a directory"):
        write(tmp_path)
