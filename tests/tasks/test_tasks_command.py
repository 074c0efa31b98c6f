"""python -m pemt_jax.tasks: list, show and prepare, in real processes."""

import os
import socketserver
import subprocess
import sys
import threading

import pytest
import seqio
import tensorflow as tf

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data import token_cache as data
from pemt_jax.tasks import __main__ as command
from pemt_jax.tasks.commands import listing, preparing
from pemt_jax.tasks.sources import cached, tfds_rows


@pytest.fixture
def run(tfds_folder, tmp_path):
    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "pemt_jax.tasks", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={
                **os.environ,
                "TFDS_DATA_DIR": str(tfds_folder),
                "PEMT_JAX_CACHE": str(tmp_path),
                **environment,
            },
        )

    return run


def test_list_shows_sizes_data_metric_and_source(tiny_data, capsys):
    assert command.main(["list", "pemt_c?", "pemt_multirc", "pemt_squad_8", "vader_movies"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "TASK TRAIN VALIDATION TEST DATA METRIC SOURCE".split(),
        "pemt_cb 6 3 3 on disk accuracy_and_macro_f1 tfds super_glue/cb:1.0.2".split(),
        "pemt_multirc 2 ? ? on disk multirc tfds super_glue/multirc:1.0.2".split(),
        "pemt_squad_8 8 2 2 on disk squad tfds squad/v1.1:3.0.0".split(),
        "vader_movies ? ? ? - accuracy TrackedSource".split(),
    ]


def test_listing_builds_no_data_set(tiny_data, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a data set was opened")

    monkeypatch.setattr(tfds_rows, "_open", refused)
    monkeypatch.setattr(tf.data, "TFRecordDataset", refused)
    monkeypatch.setattr(tf.data.Dataset, "from_tensor_slices", refused)
    monkeypatch.setattr(seqio.Task, "get_dataset", refused)
    names = seqio.TaskRegistry.names()
    assert len(listing.table(sorted(names)).splitlines()) == 1 + len(names) > 168


@pytest.fixture
def cache_folders():
    """Forget the cached folders that a test adds."""
    yield
    for name in ("pemt_record", "pemt_cb"):
        seqio.TaskRegistry.get(name)._cache_dir = None
    seqio.set_tfds_data_dir_override(None)
    seqio.set_global_cache_dirs([])


@pytest.mark.slow
@pytest.mark.walk
def test_prepare_caches_what_works_without_the_data_then(run, tmp_path, monkeypatch, cache_folders):
    result = run("prepare", "pemt_record")
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        "1/1 pemt_record: tfds super_glue/record:1.0.2\n",
        "",
    )
    assert (tmp_path / "seqio" / "pemt_record" / "COMPLETED").exists()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    seqio.add_global_cache_dirs([str(tmp_path / "seqio")])
    task = seqio.TaskRegistry.get("pemt_record")
    assert listing.table(["pemt_record"]).splitlines()[1].split()[:5] == [
        "pemt_record",
        "?",
        "?",
        "?",
        "cached",
    ]
    assert cached.usable(task, "train")
    rows = list(
        task.get_dataset(
            {"inputs": 64, "targets": 8}, "train", use_cached=True, shuffle=False
        ).as_numpy_iterator()
    )
    split = data.open_split(
        "pemt_record", "train", {"inputs": 64, "targets": 8}, tmp_path / "tokens"
    )
    assert len(rows) == len(split) == 19
    assert split.targets(1).tolist() == rows[1]["targets"].tolist()
    assert split.example(0)["answers"].tolist() == [b"Anna", b"Anna K."]


def test_prepare_goes_on_where_it_was_interrupted(tiny_data, tmp_path, cache_folders):
    arguments = ["prepare", "pemt_cb", "--cache_dir", str(tmp_path)]
    assert command.main(arguments) == 0
    folder = tmp_path / "pemt_cb"
    (folder / "COMPLETED").unlink()
    (folder / "source.test.json").unlink()
    whole = (folder / "test.tfrecord-00000-of-00001").read_bytes()
    before = (folder / "train.tfrecord-00000-of-00001").stat().st_mtime_ns
    (folder / "test.tfrecord-00000-of-00001").write_bytes(whole[:9])
    assert command.main(arguments) == 0
    assert (folder / "test.tfrecord-00000-of-00001").read_bytes() == whole
    assert (folder / "train.tfrecord-00000-of-00001").stat().st_mtime_ns == before
    assert (folder / "COMPLETED").exists()


def test_an_old_cache_is_not_used(tiny_data, tmp_path, cache_folders):
    task = seqio.TaskRegistry.get("pemt_cb")
    cached.write(task, str(tmp_path), shown=False)
    seqio.add_global_cache_dirs([str(tmp_path)])
    assert cached.usable(task, "validation")
    (tmp_path / "pemt_cb" / "source.validation.json").write_text(
        '{"settings": "other", "rows": "other"}'
    )
    assert not cached.usable(task, "validation") and cached.usable(task, "test")
    # A folder from elsewhere does not say what it was made from.
    (tmp_path / "pemt_cb" / "source.validation.json").unlink()
    assert cached.usable(task, "validation")


def test_show_prints_the_prompt_and_examples(tiny_data, capsys):
    assert command.main(["show", "pemt_squad", "--split", "test", "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pemt_squad test\nprompt   Answer a question about")
    assert "inputs   'question:  context: '\ntargets  'x .'\nanswers  'x .'\n" in shown


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (
            ["shwo"],
            2,
            "There is no command 'shwo', expected one of list, show, prepare, cache "
            "(nearest: 'show').\n",
        ),
        (
            ["show", "pemt_cc"],
            2,
            "There is no task or mixture 'pemt_cc', expected one that `python -m "
            "pemt_jax.tasks` lists (nearest: 'pemt_cb').\n",
        ),
        (
            ["show", "pemt_cb", "--split", "dev"],
            2,
            "Task 'pemt_cb' has no split 'dev', expected one of train, validation, test.\n",
        ),
        (["list", "--rows", "x"], 2, "Argument --rows: invalid int value: 'x'.\n"),
        (["prepare"], 2, "No task was named, expected `python -m pemt_jax.tasks prepare NAME`.\n"),
        (
            ["prepare", "vader_movies"],
            2,
            "Task 'vader_movies' has nothing to prepare, expected a task "
            "over TFDS or JSON lines.\n",
        ),
        (
            ["--import", "no_such_module"],
            2,
            "There is no module 'no_such_module', expected one that is installed or in the "
            "working directory.\n",
        ),
    ],
)
def test_wrong_use_is_one_sentence(capsys, arguments, code, message):
    assert command.main(arguments) == code
    assert capsys.readouterr().err == f"error: {message}"


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class Builder:
        def download_and_prepare(self):
            raise OSError("no route to host\nmore")

    asked = []
    monkeypatch.setattr(
        tfds, "builder", lambda name, data_dir: asked.append((name, data_dir)) or Builder()
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        PemtError,
        match="data of task 'pemt_cb' .super_glue/cb:1.0.2. could not be "
        "downloaded to .*no route to host., expected network",
    ):
        preparing.prepare(seqio.TaskRegistry.get("pemt_cb"), str(tmp_path / "cache"))
    assert asked == [("super_glue/cb:1.0.2", str(tmp_path))]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def dead_proxy():
    """A proxy that hangs up on everyone: its address, and the calls that it got."""
    calls = []

    class HangUp(socketserver.BaseRequestHandler):
        def handle(self):
            calls.append(self.request.recv(1024))

    with socketserver.TCPServer(("127.0.0.1", 0), HangUp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", calls
        server.shutdown()


@pytest.mark.slow
def test_without_network_a_download_gives_up_soon_and_says_so_once(run, tmp_path, dead_proxy):
    address, calls = dead_proxy
    result = run(
        "prepare",
        "pemt_cb",
        TFDS_DATA_DIR=str(tmp_path / "data"),
        no_proxy="",
        NO_PROXY="",
        http_proxy=address,
        https_proxy=address,
        HTTPS_PROXY=address,
    )
    assert len([call for call in calls if b"dl.fbaipublicfiles.com" in call]) == 6  # TFDS: 11
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(
        "error: The data of task 'pemt_cb' (super_glue/cb:1.0.2) could not be downloaded to "
    )
    assert result.stderr.endswith("expected network or a folder that was prepared elsewhere.\n")
    assert not (tmp_path / "data" / "super_glue" / "cb" / "1.0.2").exists()


def test_a_mixture_stands_for_its_tasks():
    assert len(preparing.tasks_named(["pemt_targets"], "show")) == 17
    with pytest.raises(UsageError, match="nearest: 'pemt_targets'"):
        preparing.tasks_named(["pemt_target"], "show")
