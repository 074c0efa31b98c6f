"""Finished runs, libraries, data and caches in a bucket: what the commands make of them."""

import json
import shutil

import pytest
import seqio
from bucket import bucket_folder_fixture, storage_fixture  # noqa: F401
from tiny_system import EXPERTS, rows, world_fixture  # noqa: F401

from pemt_jax import tasks
from pemt_jax.cli import command, library_command
from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError
from pemt_jax.data import token_cache
from pemt_jax.evaluate import evaluate


def upload(folder, place):
    """Copy a folder into the bucket."""
    for name in storage.files_in(folder):
        (place / name).upload(folder / name)
    return place


@pytest.mark.slow
def test_a_finished_run_in_a_bucket_evaluates_and_predicts_as_on_disk(
    world, bucket_folder, tmp_path, capfd
):
    target, library = world.target, world.library
    flags = {
        "disk": [f"--gin.MODEL_DIR={target}"],
        "bucket": [
            f"--gin.MODEL_DIR={upload(target, bucket_folder / 'target')}",
            f"--gin.LIBRARY={upload(library, bucket_folder / 'library')}",
            f"--gin.VOCABULARY={upload(world.base, bucket_folder / 'base')}/spiece.model",
        ],
    }
    found = {}
    texts = "".join(f"{text}\n" for text, _ in rows("mood", "test"))
    for place, folder in (("disk", tmp_path), ("bucket", bucket_folder)):
        capfd.readouterr()
        assert world.command("evaluate", *flags[place]) == 0
        (folder / "in.txt").write_text(texts)
        files = f"--gin.INPUT_FILE={folder}/in.txt", f"--gin.OUTPUT_FILE={folder}/out.jsonl"
        assert world.command("predict", *flags[place], *files) == 0
        found[place] = capfd.readouterr().out, (folder / "out.jsonl").read_text()
    assert found["bucket"] == found["disk"] and found["disk"][1].count("\n") == 8
    assert json.loads((bucket_folder / "target/evaluation/tiny_mood-test.json").read_text())


@pytest.mark.slow
def test_the_library_command_in_a_bucket(world, bucket_folder, tmp_path, capsys):
    library = upload(world.library, bucket_folder / "library")

    def run(*arguments, code=0):
        capsys.readouterr()
        assert library_command.main([*map(str, arguments), f"--library={library}"]) == code
        return capsys.readouterr()

    listed = run("list").out
    assert all(name in listed for name in EXPERTS)
    assert run("verify").out.count("  ok  sha256 ") == 2
    assert "pushed to" in run("push", "tiny_mood", bucket_folder / "shared").out
    assert "exists already" in run("push", "tiny_mood", bucket_folder / "shared", code=2).err
    assert "removed" in run("remove", "tiny_mood").out
    assert "tiny_mood" not in run("list").out
    assert "pulled" in run("pull", bucket_folder / "shared").out
    assert run("list").out == listed
    run("export", "tiny_mood", "--format=folder", "--to", bucket_folder / "exported")
    run("export", "tiny_mood", "--format=peft", "--to", bucket_folder / "peft")
    run("add", bucket_folder / "exported", "--name=added")
    run("import", bucket_folder / "peft", "--format=peft", "--name=imported")
    assert run("verify").out.count("  ok  sha256 ") == 4
    weights = library / "added" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    damaged = run("verify", code=1)
    assert damaged.out.count("  ok  sha256 ") == 3
    assert f"error: {weights} is damaged or exchanged: " in damaged.err
    with storage.fetched(library / "tiny_topic") as copy:
        original = world.library / "tiny_topic"
        assert {p.name: p.read_bytes() for p in copy.iterdir()} == {
            p.name: p.read_bytes() for p in original.iterdir()
        }


def test_one_machine_tokenises_what_the_others_download(bucket_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(bucket_folder / "cache"))
    lengths, made = {"inputs": 16, "targets": 4}, []
    original = token_cache._tokenize
    monkeypatch.setattr(token_cache, "_tokenize", lambda *given: (made.append(1), original(*given)))
    splits = []
    for machine in ("one", "two", "three"):
        monkeypatch.setenv("HOME", str(tmp_path / machine))
        if machine == "three":
            (file,) = [p for p in (bucket_folder / "cache").rglob("*inputs.npy")]
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        splits.append(token_cache.open_split("tiny_mood", "train", lengths))
        assert len(made) == (2 if machine == "three" else 1)  # damage is found, and mended
    assert splits[0].sha256 == splits[1].sha256 == splits[2].sha256
    shutil.rmtree(tmp_path / "two")
    monkeypatch.setenv("HOME", str(tmp_path / "two"))
    token_cache.open_split("tiny_mood", "train", lengths)
    assert len(made) == 2


def test_json_lines_in_a_bucket_are_a_task(bucket_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path))
    data = {}
    for split in ("train", "validation", "test"):
        lines = [{"text": f"{split} {i}", "label": ("no", "yes")[i % 2]} for i in range(4)]
        file = bucket_folder / f"{split}.jsonl"
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        data[split] = str(file)
    tasks.from_rows("in_bucket", data, "text: {text}", ("no", "yes"), "Say yes.")
    split = token_cache.open_split("in_bucket", "test", {"inputs": 16, "targets": 4})
    assert [split.example(i)["inputs_pretokenized"] for i in range(4)] == [
        f"text: test {i}".encode() for i in range(4)
    ]
    (bucket_folder / "test.jsonl").write_text('{"text": "other", "label": "no"}\n')
    split = token_cache.open_split("in_bucket", "test", {"inputs": 16, "targets": 4})
    assert split.example(0)["inputs_pretokenized"] == b"text: other"


def test_gin_files_in_a_bucket_are_read_and_their_faults_named(bucket_folder):
    def read(name):
        return command.arguments_of(evaluate, [f"--gin_file={bucket_folder}/{name}"])

    (bucket_folder / "my.gin").write_text(
        f"include '{bucket_folder}/shared.gin'\nMODEL_DIR = 'runs/x'\n"
    )
    (bucket_folder / "shared.gin").write_text("BATCH_SIZE = 8\n")
    assert read("my.gin") == {"model_dir": "runs/x", "batch_size": 8}
    (bucket_folder / "shared.gin").write_text("BATCH_SIZE = @missing.of()\n")
    with pytest.raises(UsageError, match=rf"{bucket_folder}/shared.gin line 1: .*missing"):
        read("my.gin")
    with pytest.raises(UsageError, match=rf"There is no gin file '{bucket_folder}/other.gin'"):
        read("other.gin")


@pytest.mark.slow
def test_prepared_data_in_a_bucket_are_those_on_disk(
    bucket_folder, tfds_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path))
    upload(tfds_folder / "glue" / "cola", bucket_folder / "glue" / "cola")
    found = []
    for folder in (tfds_folder, bucket_folder):
        monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
        source = seqio.TaskRegistry.get("pemt_cola").source
        rows_found = source.get_dataset("validation", shuffle=False).as_numpy_iterator()
        found.append([repr(row) for row in rows_found])
    assert found[0] == found[1] and found[0]
