"""Sharing: a folder that stands for the hub, and a stand-in for its client in a real command."""

import dataclasses
import inspect
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hub_server import hub_fixture  # noqa: F401  (a fixture, `hub`)

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import MINI_T5
from pemt_jax.library import expert as library
from pemt_jax.library import hub as sharing
from pemt_jax.library.artefact import read_card, write_card
from pemt_jax.library.transfer import without_paths

# Repositories are folders of $HUB; like the client, it knows files by '/'-joined paths.
STAND_IN = """
import fnmatch, os, pathlib, shutil, types

HUB = pathlib.Path(os.environ["HUB"])

class HfApi:
    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        assert private and exist_ok
        (HUB / repo_id).mkdir(parents=True, exist_ok=True)

    def list_repo_files(self, repo_id):
        if not (HUB / repo_id).is_dir():
            raise RuntimeError("404 Client Error.\\nRepository Not Found")
        files = [path for path in (HUB / repo_id).rglob("*") if not path.is_dir()]
        return [path.relative_to(HUB / repo_id).as_posix() for path in files]

    def model_info(self, repo_id, *, revision=None):
        files = [types.SimpleNamespace(rfilename=name) for name in self.list_repo_files(repo_id)]
        return types.SimpleNamespace(sha=revision or "newest", siblings=files)

    def upload_folder(self, *, repo_id, folder_path, path_in_repo, commit_message):
        shutil.copytree(folder_path, HUB / repo_id / path_in_repo)

    def snapshot_download(self, repo_id, *, revision, allow_patterns, local_dir):
        assert revision == "newest"
        for file in self.list_repo_files(repo_id):
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                to = pathlib.Path(local_dir, file)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(HUB / repo_id / file, to, follow_symlinks=False)
"""


@pytest.fixture
def command(tmp_path):
    """Run the library's command with the stand-in; return exit code, output, error."""
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "huggingface_hub.py").write_text(STAND_IN)

    def run(*arguments, into="library", client="client"):
        done = subprocess.run(
            [sys.executable, "-m", "pemt_jax.library", *map(str, arguments)],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ
            | {
                "PYTHONPATH": str(tmp_path / client),
                "HUB": str(tmp_path / "hub"),
                "PEMT_JAX_LIBRARY": str(tmp_path / into),
            },
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The stand-in in this process; returns the folder of the repository me/experts."""
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "huggingface_hub.py").write_text(STAND_IN)
    monkeypatch.setenv("HUB", str(tmp_path / "hub"))
    monkeypatch.syspath_prepend(tmp_path / "client")
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    yield tmp_path / "hub" / "me" / "experts"
    sys.modules.pop("huggingface_hub", None)


@pytest.mark.slow
@pytest.mark.walk
def test_an_expert_goes_to_the_hub_and_comes_back(save_expert, tmp_path, command):
    for name in ("movies", "nyt"):
        folder = save_expert(name, seed=len(name))
        assert command("push", name, "me/experts") == (
            0,
            f"{name}  pushed to me/experts/{name}\n",
            "",
        )
    code, output, error = command("pull", "me/experts", "nyt", into="one")
    assert (code, error) == (0, "") and output.startswith("nyt  pulled  sha256 ")
    code, output, error = command("pull", "me/experts", into="all")
    assert (code, error, output.count("\n")) == (0, "", 2)
    assert library.expert_names(tmp_path / "one") == ["nyt"]
    for name in ("movies", "nyt"):
        for file in ("card.json", "weights.safetensors"):
            assert (tmp_path / "all" / name / file).read_bytes() == (
                folder / name / file
            ).read_bytes()
    code, output, error = command("push", "nyt", "me/experts")
    assert code == 2 and "holds an expert 'nyt' already" in error


def test_a_folder_stands_for_a_repository(save_expert, tmp_path):
    folder = save_expert("movies")
    (tmp_path / "shared").mkdir()
    assert sharing.push_expert(folder, "movies", str(tmp_path / "shared")).endswith("shared/movies")
    pulled = sharing.pull_experts(tmp_path / "mine", str(tmp_path / "shared"))
    assert [expert.name for expert in pulled.added] == ["movies"]
    with pytest.raises(UsageError, match="exists already"):
        sharing.push_expert(folder, "movies", str(tmp_path / "shared"))
    with pytest.raises(UsageError, match="nearest: 'movies'"):
        sharing.pull_experts(tmp_path / "mine", str(tmp_path / "shared"), "movie")


@pytest.mark.slow
def test_a_pull_goes_on_past_what_is_already_there(save_expert, tmp_path, command):
    for name in ("movies", "nyt", "tweets"):
        save_expert(name, seed=len(name))
        assert command("push", name, "me/experts")[0] == 0
    assert command("pull", "me/experts", "nyt", into="mine")[0] == 0
    code, output, error = command("pull", "me/experts", into="mine")
    assert (code, error) == (0, "")
    lines = [line.split("  ")[:2] for line in output.splitlines()]
    assert lines == [["movies", "pulled"], ["tweets", "pulled"], ["nyt", "already there"]]

    shutil.rmtree(tmp_path / "mine" / "movies")
    shutil.rmtree(tmp_path / "mine" / "nyt")
    shutil.copytree(tmp_path / "library" / "tweets", tmp_path / "mine" / "nyt")
    before = (tmp_path / "mine" / "nyt" / "card.json").read_bytes()
    code, output, error = command("pull", "me/experts", into="mine")
    assert code == 2 and output.splitlines()[0].startswith("movies  pulled")
    assert "mine/nyt exists already and is not the 'nyt' of me/experts" in error
    assert (tmp_path / "mine" / "nyt" / "card.json").read_bytes() == before


@pytest.mark.parametrize("repo", ["me/experts", "shared"])
def test_a_pushed_card_names_no_path_of_this_machine(save_expert, tmp_path, offline, repo):
    folder = save_expert("movies")
    read = library.load_expert(folder, "movies")
    card = read_card(folder / "movies")
    config = {"model_dir": "/home/me/movies", "library": str(folder), "seed": 3}
    config["base"] = storage.absolute(MINI_T5)
    write_card(folder / "movies" / "card.json", dataclasses.replace(card, config=config))
    (tmp_path / "shared").mkdir()
    sharing.push_expert(folder, "movies", str(tmp_path / "shared") if repo == "shared" else repo)
    pushed = (tmp_path / "shared" if repo == "shared" else offline) / "movies"
    assert read_card(pushed).config == {"seed": 3, "base": "mini_t5"}
    assert "/home/me" not in (pushed / "card.json").read_text()
    (expert,) = sharing.pull_experts(tmp_path / "mine", str(pushed.parent)).added
    assert expert.sha256 == read.sha256
    write_card(folder / "movies" / "card.json", dataclasses.replace(card, config={"base": "/x/t5"}))
    assert without_paths(read_card(folder / "movies")).config == {}


def test_a_push_in_bfloat16_rounds_the_weights_of_the_copy_only(save_expert, tmp_path):
    folder, shared = save_expert("movies"), tmp_path / "shared"
    shared.mkdir()
    before = library.load_expert(folder, "movies")
    with pytest.raises(UsageError, match="--dtype 'bfloat', expected one of .* 'bfloat16'"):
        sharing.push_expert(folder, "movies", str(shared), "bfloat")
    assert not any(shared.iterdir())
    sharing.push_expert(folder, "movies", str(shared), "bfloat16")
    (pulled,) = sharing.pull_experts(tmp_path / "mine", str(shared)).added
    assert library.load_expert(folder, "movies").sha256 == before.sha256 != pulled.sha256
    assert pulled.metrics == before.metrics and pulled.rank == before.rank
    pairs = [(before.prompt, pulled.prompt)]
    pairs += [
        pair
        for linear in before.lora
        for pair in zip(before.lora[linear], pulled.lora[linear], strict=True)
    ]
    for kept, rounded in pairs:
        assert rounded.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(rounded, kept.astype(ml_dtypes.bfloat16))
    options = library.PemtConfig(prompt_length=1, **library.bank_options([pulled]))
    bank = library.stack_experts([pulled], options)
    assert {array.dtype.name for array in bank.values()} == {"float32"}


def damage(repo):
    path = repo / "nyt" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def link(repo):
    (repo / "nyt" / "weights.safetensors").unlink()
    (repo / "nyt" / "weights.safetensors").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (damage, "damaged or exchanged"),
        (link, "the link 'weights.safetensors'"),
        (lambda repo: (repo / "nyt" / "setup.py").touch(), "brings 'nyt/setup.py'"),
        (lambda repo: (repo / "nyt" / "card.json").write_text("{}"), "damaged or edited by hand"),
        (lambda repo: (repo / "nyt" / "weights.safetensors").unlink(), "no weights.safetensors"),
        (lambda repo: (repo / "nyt").rename(repo / ".nyt"), "'.nyt' is no name"),
    ],
)
def test_of_what_is_not_all_good_nothing_enters(save_expert, tmp_path, offline, spoil, message):
    for name in ("movies", "nyt"):
        sharing.push_expert(save_expert(name), name, "me/experts")
    spoil(offline)
    with pytest.raises(PemtError, match=message):
        sharing.pull_experts(tmp_path / "mine", "me/experts")
    assert not (tmp_path / "mine").exists()


def test_paths_that_lead_outside_are_no_experts(save_expert, tmp_path, offline, monkeypatch):
    sharing.push_expert(save_expert("nyt"), "nyt", "me/experts")
    import huggingface_hub

    names = ["nyt/card.json", "nyt/weights.safetensors", "../card.json", "/etc/card.json"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo: names)
    with pytest.raises(UsageError, match="'..' is no name"):
        sharing.pull_experts(tmp_path / "mine", "me/experts")


def test_what_the_hub_says_is_one_sentence(save_expert, tmp_path, offline):
    with pytest.raises(PemtError, match=r"did not serve you/none: 404 Client Error\.$"):
        sharing.pull_experts(tmp_path / "mine", "you/none")
    sharing.push_expert(save_expert("nyt"), "nyt", "me/experts")
    with pytest.raises(UsageError, match="no expert 'nty' in me/experts, .*nearest: 'nyt'"):
        sharing.pull_experts(tmp_path / "mine", "me/experts", "nty")
    shutil.rmtree(offline / "nyt")
    with pytest.raises(UsageError, match="There are no experts in me/experts"):
        sharing.pull_experts(tmp_path / "mine", "me/experts")
    (offline / "nyt").mkdir()
    (offline / "nyt" / "card.json").touch()
    found = sharing.pull_experts(tmp_path / "library", "me/experts")
    assert found == sharing.Pulled([], [], ["nyt"])


def test_the_real_client_pulls_one_commit(save_expert, tmp_path, hub):
    folder = save_expert("nyt")
    files = {f"nyt/{path.name}": path.read_bytes() for path in (folder / "nyt").iterdir()}
    old = hub.commit("me/experts", files)
    hub.commit("me/experts", {"README.md": b"moved"})
    with pytest.raises(UsageError, match="There are no experts in me/experts"):
        sharing.pull_experts(tmp_path / "mine", "me/experts")
    (pulled,) = sharing.pull_experts(tmp_path / "mine", f"me/experts@{old}").added
    assert pulled.sha256 == library.load_expert(folder, "nyt").sha256
    with pytest.raises(PemtError, match="me/experts at .* has no revision 'v9'"):
        sharing.pull_experts(tmp_path / "mine", "me/experts@v9")


def test_without_huggingface_hub_one_sentence_says_how_to_get_it(save_expert, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PemtError, match=r'pip install "pemt_jax\[hub\]"\.'):
        sharing.push_expert(save_expert("nyt"), "nyt", "me/experts")


CALLED = ("create_repo", "list_repo_files", "model_info", "upload_folder", "snapshot_download")


def test_the_client_takes_the_arguments_that_the_stand_in_takes(tmp_path):
    client = pytest.importorskip("huggingface_hub", reason='needs pip install "pemt_jax[hub]"')
    stand_in = {}
    os.environ.setdefault("HUB", str(tmp_path))
    exec(STAND_IN, stand_in)  # our own text, above
    for name in CALLED:
        ours = inspect.signature(getattr(stand_in["HfApi"], name)).parameters
        theirs = inspect.signature(getattr(client.HfApi, name)).parameters
        assert ours.keys() <= theirs.keys(), name
