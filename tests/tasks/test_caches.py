"""python -m pemt_jax.tasks cache: what the cache holds, and what pruning removes and leaves."""

import os
import time
from pathlib import Path

import jax
import pytest
import seqio

from pemt_jax.common.storage import replacing
from pemt_jax.data import token_cache
from pemt_jax.tasks import __main__ as command
from pemt_jax.tasks.commands import caches

LENGTHS = {"inputs": 64, "targets": 16}
MIB = bytes(2**20)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(path: Path, days: float, content: bytes = b"x") -> Path:
    """A file that was last read and changed so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return aged(path, days)


def aged(path: Path, days: float) -> Path:
    then = time.time() - days * caches.DAY
    for file in path.rglob("*") if path.is_dir() else ():
        os.utime(file, (then, then))
    os.utime(path, (then, then))
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def prune(capsys, *arguments: str) -> list[str]:
    assert command.main(["cache", "--prune", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def split_folder(cache: Path, name: str, days: float) -> Path:
    folder = cache / "tokens" / f"{name}-{'0123456789abcdef0123'}"
    put(folder / "meta.json", days)
    put(folder / "inputs.npy", days, MIB)
    return aged(folder, days)


def test_the_list_has_entries_sizes_and_last_uses(cache, capsys):
    today = time.strftime("%Y-%m-%d")
    split_folder(cache, "pemt_cb-train", days=0)
    split_folder(cache, "pemt_cb-test", days=400)
    put(cache / "compiled" / "jit_step-1-cache", 0, 3 * MIB)
    put(cache / "seqio" / "pemt_cb" / "COMPLETED", 0)
    put(cache / "demo.tar.gz", 0, MIB)
    (cache / "vocabularies").symlink_to(cache / "seqio")
    assert command.main(["cache"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(cache),
        "FOLDER        ENTRIES     SIZE  LAST USE",
        f"tokens              2  2.0 MiB  {today}",
        f"compiled            1  3.0 MiB  {today}",
        f"seqio               1  0.0 MiB  {today}",
        "vocabularies        -        -  (a link, left alone)",
        f"downloads           1  1.0 MiB  {today}",
    ]


def test_an_empty_cache_is_no_failure(cache, capsys):
    assert command.main(["cache"]) == 0
    assert capsys.readouterr().out == f"{cache}\nFOLDER  ENTRIES  SIZE  LAST USE\n"
    assert prune(capsys) == [
        f"Nothing to prune in {cache}: everything was used in the last 30 days."
    ]


def test_pruning_removes_what_was_not_used_and_says_what_it_freed(cache, capsys):
    split_folder(cache, "pemt_cb-train", days=29)
    split_folder(cache, "pemt_cb-test", days=31)
    put(cache / "compiled" / "jit_step-1-cache", 31, 2 * MIB)
    put(cache / "compiled" / "jit_step-2-cache", 29)
    put(cache / "compiled" / "jit_step-3-cache", 31)
    put(cache / "compiled" / "jit_step-3-atime", 1)
    put(cache / "compiled" / "jit_step-4-cache", 31)
    put(cache / "compiled" / "jit_step-4-atime", 31)
    assert prune(capsys) == [
        "tokenised splits: 1, 1.0 MiB",
        "compiled steps: 2, 2.0 MiB",
        f"Freed 3.0 MiB in {cache}, unused for 30 days.",
    ]
    kept = {"compiled/jit_step-2-cache", "compiled/jit_step-3-cache", "compiled/jit_step-3-atime"}
    assert {name for name in files(cache) if name.startswith("compiled")} == kept
    assert [path.name[:13] for path in (cache / "tokens").iterdir()] == ["pemt_cb-train"]
    prune(capsys, "--older_than", "2.5")
    assert files(cache) == {"compiled/jit_step-3-cache", "compiled/jit_step-3-atime"}


def test_pruning_leaves_everything_else(cache, capsys, tmp_path):
    outside = split_folder(tmp_path / "outside", "pemt_cb-train", days=99)
    put(tmp_path / "outside" / "steps" / "jit_step-1-cache", 99)
    others = [
        cache / "demo.tar.gz",
        cache / "seqio" / "pemt_cb" / "train.tfrecord-00000-of-00001",
        cache / "vocabularies" / "a.model",
        cache / "rows" / "a.jsonl",
        cache / "tokens" / "notes.txt",
        cache / "tokens" / "mine" / "inputs.npy",
        cache / "tokens" / f"mine-{'a' * 20}" / "thesis.tex",
        cache / "compiled" / "notes.txt",
        cache / "compiled" / "folder-cache" / "notes.txt",
        cache / "mine" / ".unfinished-thesis" / "thesis.tex",
        cache / "mine" / ".a.7.partial",
    ]
    for path in others:
        put(path, 99)
        aged(path.parent, 99)
    (cache / "tokens" / outside.name).symlink_to(outside)
    (cache / "tokens" / ".unfinished-x").symlink_to(outside)
    (cache / "compiled" / "jit_step-1-cache").symlink_to(
        tmp_path / "outside" / "steps" / "jit_step-1-cache"
    )
    linked = split_folder(cache, "linked-train", days=99)
    (linked / "targets.npy").symlink_to(outside / "inputs.npy")
    before = files(tmp_path)
    assert prune(capsys, "--older_than", "0")[0].startswith("Nothing to prune")
    assert files(tmp_path) == before


@pytest.mark.parametrize("folder", ["tokens", "compiled"])
def test_pruning_does_not_enter_a_folder_that_is_a_link(cache, capsys, tmp_path, folder):
    outside = tmp_path / "outside"
    split_folder(outside, "pemt_cb-train", days=99)
    put(outside / "tokens" / ".unfinished-a" / "x", 99)
    put(outside / "compiled" / "jit_step-1-cache", 99)
    cache.mkdir()
    (cache / folder).symlink_to(outside / folder)
    before = files(outside)
    assert prune(capsys)[0].startswith("Nothing to prune")
    assert files(outside) == before


def test_a_cache_folder_that_is_a_link_itself_is_pruned(tmp_path, monkeypatch, capsys):
    split_folder(tmp_path / "disk", "pemt_cb-train", days=99)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "link"))
    assert prune(capsys)[0] == "tokenised splits: 1, 1.0 MiB"


def test_leftovers_of_killed_writers_are_pruned_but_not_those_of_a_day(cache, capsys):
    killed, writing = cache / "tokens" / ".unfinished-a", cache / "tokens" / ".unfinished-b"
    for folder, days in ((killed, 40), (writing, 0.5)):
        put(folder / "split" / "inputs.npy", days, MIB)
    empty = cache / ".unfinished-download"
    empty.mkdir()
    aged(empty, 40)
    with replacing(cache / "vocabularies" / "a.model") as partial:
        partial.write_bytes(b"x")
    put(cache / "vocabularies" / partial.name, 40)
    assert prune(capsys, "--older_than", "0") == [
        "unfinished writes: 3, 1.0 MiB",
        f"Freed 1.0 MiB in {cache}, unused for 0 days.",
    ]
    assert not killed.exists() and not empty.exists() and writing.exists()
    assert files(cache / "vocabularies") == {"a.model"}


def test_opening_a_split_counts_as_use(cache, tiny_data, capsys):
    for split in ("train", "test"):
        token_cache.open_split("pemt_cb", split, LENGTHS)
    for folder in (cache / "tokens").iterdir():
        aged(folder, 40)
    token_cache.open_split("pemt_cb", "train", LENGTHS)
    assert prune(capsys)[0].startswith("tokenised splits: 1, ")
    (kept,) = (cache / "tokens").iterdir()
    assert kept.name.startswith("pemt_cb-train-")
    assert len(token_cache.open_split("pemt_cb", "train", LENGTHS)) == len(
        seqio.TaskRegistry.get("pemt_cb").source.rows("train")
    )


def test_jaxs_compiled_steps_have_the_names_that_are_pruned(cache):
    names = {
        "jax_compilation_cache_dir": str(cache / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    from jax.experimental.compilation_cache import compilation_cache

    try:
        for name, value in names.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.jit(lambda x: 3 * x + 1)(2.0).block_until_ready()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert files(cache / "compiled")
    found = {f"compiled/{path.name}" for step in caches.compiled_steps(cache) for path in step}
    assert found == files(cache)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tokens"], "Found 'tokens' after cache, expected no name."),
        (["--older_than", "3"], "Found --older_than without --prune, expected both."),
        (
            ["--prune", "--older_than", "-1"],
            "--older_than is -1, expected a number of days, 0 or more.",
        ),
    ],
)
def test_wrong_use_is_one_sentence(cache, capsys, arguments, message):
    assert command.main(["cache", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_refusal_of_the_file_system_is_one_sentence(cache, capsys, monkeypatch):
    split_folder(cache, "pemt_cb-train", days=40)

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(caches.shutil, "rmtree", refused)
    assert command.main(["cache", "--prune"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Cannot remove ") and error.endswith(": Permission denied.\n")


def test_copies_of_what_is_in_a_bucket_are_pruned(cache, capsys):
    old, new = (cache / "copies" / (letter * 20) / "spiece.model" for letter in "ab")
    aged(put(old, days=40, content=MIB).parent, 40)
    put(new, days=1)
    other = put(cache / "copies" / "mine" / "file", days=400)
    assert prune(capsys)[0] == "copies of objects: 1, 1.0 MiB"
    assert files(cache) == {str(path.relative_to(cache)) for path in (new, other)}
