"""Several processes with a base by its name on the hub: one commit, downloaded once per cache."""

import json

import pytest
from hub_server import hub_fixture  # noqa: F401  (a fixture)
from local_job import run_twice
from tiny_system import world_fixture  # noqa: F401  (a fixture)

FILES = ["config.json", "model.safetensors"]
SCRIPT = """
import json, os, sys
import jax
from pemt_jax.library import hub_names
from pemt_jax.parallel import processes

with processes.joined():
    if "apart" in sys.argv:
        os.environ["HF_HUB_CACHE"] += str(jax.process_index())
    name = hub_names.same_everywhere("me/t5")
    weights = hub_names.find(name).folder / "model.safetensors"
    print(json.dumps([name, weights.read_text()]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("caches", ["shared", "apart"])
def test_all_processes_use_the_commit_that_the_first_found(world, hub, caches, monkeypatch):  # noqa: F811
    commit = hub.commit("me/t5", {"config.json": b"{}", "model.safetensors": b"old"})
    later = hub.commit("me/t5", {"config.json": b"{}", "model.safetensors": b"new"}, "later")
    plain = hub.answer

    def moving(path):  # once the first process has asked, the branch is elsewhere
        answer = plain(path)
        if path.endswith("/revision/main"):
            hub.branches["me/t5"]["main"] = later
        return answer

    monkeypatch.setattr(hub, "answer", moving)
    done = run_twice(world, SCRIPT, caches)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == 2 * [[f"me/t5@{commit}", "old"]]
    assert sorted(file for _, file in hub.downloads) == sorted(
        FILES * (2 if caches == "apart" else 1)
    )


@pytest.mark.slow
def test_what_the_first_process_does_not_find_ends_all(world, hub):  # noqa: F811
    done = run_twice(world, SCRIPT, "shared")
    assert done.returncode == 1
    assert "There is neither a local folder me/t5 nor a repository me/t5" in done.stderr
