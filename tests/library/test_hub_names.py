"""Names on the hub, by the real client and a hub on this machine: which files, which commit, where.

The same through the commands is in tests/runs/test_hub_base.py.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
from hub_server import forget, hub_fixture, point_at, set_offline  # noqa: F401  (a fixture)

from pemt_jax.common.errors import PemtError
from pemt_jax.library import hub_names
from pemt_jax.library.hub_names import ADAPTER, find, lasting_name, local_folder, same_everywhere

T5 = {
    "config.json": b"{}",
    "spiece.model": b"pieces",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "flax_model.msgpack": b"more weights",
    "modeling.py": b"raise SystemExit",
    "README.md": b"a model",
}


def names(hub):
    return sorted(file for _, file in hub.downloads)


def test_the_first_use_downloads_what_is_read_and_the_second_nothing(hub, tmp_path, caplog):
    commit = hub.commit("me/t5", T5)
    with caplog.at_level(logging.INFO, "pemt_jax"):
        found = find("me/t5")
    assert (found.repo, found.commit) == ("me/t5", commit)
    assert names(hub) == ["config.json", "model.safetensors", "spiece.model"]
    assert f"me/t5@{commit}" in caplog.text
    assert found.folder.is_relative_to(tmp_path / "cache" / "hub")
    for file in names(hub):
        assert (found.folder / file).read_bytes() == T5[file]
    asked = hub.requests
    assert find("me/t5") is find(found.name) is found
    assert hub.requests == asked
    forget()
    assert find("me/t5") == find(f"me/t5@{commit}") == found
    assert len(hub.downloads) == 3


@pytest.mark.parametrize(
    "files, expected",
    [
        (("pytorch_model.bin",), ["pytorch_model.bin"]),
        (
            ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
            ["model-00001-of-00002.safetensors", "model.safetensors.index.json"],
        ),
    ],
)
def test_of_the_weights_one_format_is_downloaded(hub, files, expected):
    weights = {name: name.encode() for name in files}
    hub.commit("me/t5", {"config.json": b"{}", "rng.pkl": b""} | weights)
    find("me/t5")
    assert names(hub) == ["config.json", *expected]


def test_other_weights_than_these_are_none(hub):
    commit = hub.commit("me/t5", {"config.json": b"{}", "flax_model.msgpack": b"w"})
    with pytest.raises(PemtError, match=f"no weights of me/t5@{commit} .*, expected model.safe"):
        find("me/t5")
    assert names(hub) == ["config.json"]


def test_an_adapter_brings_its_two_files(hub):
    hub.commit("lorahub/cot", {"adapter_config.json": b"{}", "adapter_model.bin": b"p"} | T5)
    folder = local_folder(Path("lorahub/cot"), ADAPTER)
    assert sorted(path.name for path in folder.iterdir()) == names(hub)
    assert names(hub) == ["adapter_config.json", "adapter_model.bin"]


def test_a_name_means_the_commit_that_it_was_at_its_first_use(hub):
    old = hub.commit("me/t5", T5)
    assert same_everywhere("me/t5") == f"me/t5@{old}"
    new = hub.commit("me/t5", T5 | {"model.safetensors": b"trained on"})
    tag = hub.commit("me/t5", T5 | {"model.safetensors": b"other"}, branch="v2")
    assert find("me/t5").commit == old
    forget()
    assert same_everywhere("me/t5") == f"me/t5@{new}"
    assert same_everywhere(f"me/t5@{old}") == f"me/t5@{old}"
    assert same_everywhere("me/t5@v2") == f"me/t5@{tag}"
    assert lasting_name("me/t5") == f"me/t5@{new}"


def test_a_resumed_run_keeps_its_commit(hub):
    old = hub.commit("me/t5", T5)
    hub.commit("me/other", T5)
    new = hub.commit("me/t5", {"config.json": b"{}", "model.safetensors": b"trained on"})
    recorded = f"me/t5@{old}"
    assert same_everywhere("me/t5", recorded) == recorded
    assert same_everywhere("me/t5@main", recorded) == f"me/t5@{new}"  # its user asks for that
    assert same_everywhere("me/other", recorded).startswith("me/other@")


def test_a_local_folder_of_that_name_takes_precedence(hub, tmp_path, monkeypatch):
    hub.commit("me/t5", T5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "t5").mkdir(parents=True)
    assert find("me/t5") is None and same_everywhere("me/t5") == "me/t5"
    assert same_everywhere("me/t5", f"me/t5@{'0' * 40}") == "me/t5"
    assert lasting_name("me/t5") == str(tmp_path / "me" / "t5")
    for path in ("/a/b", "t5", "./me/t6", "../me/t6", "a/b/c", "gs://me/t5", "me/", ""):
        assert local_folder(path) == path
    assert not hub.requests


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no network"])
def test_without_a_network_the_cache_is_read(hub, tmp_path, monkeypatch, how):
    commit = hub.commit("me/t5", T5)
    found = find("me/t5")
    forget()
    asked = hub.requests
    if how == "HF_HUB_OFFLINE":
        set_offline(monkeypatch, True)
    else:
        point_at(monkeypatch, "http://127.0.0.1:9")
    assert find("me/t5") == find(f"me/t5@{commit}") == found
    assert hub.requests == asked
    with pytest.raises(PemtError) as caught:
        find("me/t6")
    assert str(caught.value).startswith(
        "There is neither a local folder me/t6 nor a complete snapshot of it in "
        f"{tmp_path / 'cache' / 'hub'}, and "
    )
    state = "HF_HUB_OFFLINE forbids" if how == "HF_HUB_OFFLINE" else "there is no connection to"
    assert state in str(caught.value) and str(caught.value).count(". ") == 0


def test_half_a_snapshot_is_none(hub, monkeypatch):
    hub.commit("me/t5", T5)
    weights = find("me/t5").folder / "model.safetensors"
    os.remove(weights.resolve())
    weights.unlink()
    forget()
    set_offline(monkeypatch, True)
    with pytest.raises(PemtError, match="nor a complete snapshot|no weights of me/t5@"):
        find("me/t5")
    set_offline(monkeypatch, False)
    assert (find("me/t5").folder / "model.safetensors").read_bytes() == b"weights"
    assert names(hub).count("config.json") == 1


def test_what_the_hub_has_not_is_one_sentence(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    hub.commit("me/t5", T5)
    hub.commit("me/secret", T5)
    hub.gated.add("me/secret")
    for name, sentence in {
        "runs/bse": f"There is neither a local folder runs/bse nor a repository runs/bse at "
        f"{hub.url}, expected one of them; a private repository needs `hf auth login` "
        "(nearest: 'base').",
        "me/t5@v9": f"me/t5 at {hub.url} has no revision 'v9', expected a branch, a tag or the "
        "hash of a commit.",
        "me/secret": "me/secret is gated on the Hugging Face hub, expected `hf auth login` of a "
        f"user who has access, see {hub.url}/me/secret.",
    }.items():
        with pytest.raises(PemtError) as caught:
            find(name)
        assert str(caught.value) == sentence
    with pytest.raises(PemtError, match="neither a local folder me/a--b nor a repository"):
        find("me/a--b")  # no name can have two dashes
    with pytest.raises(PemtError, match="me/t5 .* no adapter_config.json .* a PEFT adapter"):
        find("me/t5", ADAPTER)


def test_without_huggingface_hub_one_sentence_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PemtError) as caught:
        find("runs/bse")
    assert str(caught.value) == (
        "There is no local folder runs/bse, and the Hugging Face hub needs huggingface_hub, which "
        "is not installed, expected after pip install \"pemt_jax[hub]\" (nearest: 'base')."
    )


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "model-/../../../../../evil-of-1.safetensors", "/tmp/x.bin"]
)
def test_names_of_files_do_not_lead_out_of_the_cache(hub, tmp_path, name):
    hub.commit("me/t5", {"config.json": b"{}", "pytorch_model.bin": b"p", name: b"evil"})
    find("me/t5")
    assert names(hub) == ["config.json", "pytorch_model.bin"]
    assert b"evil" not in [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]


def test_the_name_of_a_commit_is_a_hash(hub):
    hub.commit("me/t5", T5)
    hub.commits["me/t5"]["main"] = hub.commits["me/t5"][hub.branches["me/t5"].pop("main")]
    with pytest.raises(PemtError, match="says 'main' for me/t5, expected the hash of a commit"):
        find("me/t5")


@pytest.mark.slow
def test_two_processes_on_one_machine_download_once(hub, tmp_path):
    hub.commit("me/t5", T5)
    hub.seconds = 1.5
    script = "from pemt_jax.library.hub_names import find; print(find('me/t5').folder)"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=120)[0] for process in started}
    assert len(folders) == 1 and [process.returncode for process in started] == [0, 0]
    assert names(hub) == ["config.json", "model.safetensors", "spiece.model"]


def test_the_kinds_have_no_pattern_that_matches_a_folder():
    for kind in (hub_names.BASE, ADAPTER):
        for pattern in (kind.key, *kind.others, *sum(kind.weights, ())):
            assert not set(pattern.replace("[0-9]", "0")) & set("*?[]/\\"), pattern


def test_the_stand_in_speaks_as_the_hub_does(hub):
    """What the client makes of it: the classes of its errors, which are told by name."""
    client = pytest.importorskip("huggingface_hub")
    from huggingface_hub import errors

    commit = hub.commit("me/t5", T5)
    assert client.HfApi().model_info("me/t5").sha == commit
    with pytest.raises(errors.RepositoryNotFoundError):
        client.HfApi().model_info("me/none")
    with pytest.raises(errors.RevisionNotFoundError):
        client.HfApi().model_info("me/t5", revision="none")
    with pytest.raises(errors.EntryNotFoundError):
        client.hf_hub_download("me/t5", "none")
    assert hub_server.etag(b"")
