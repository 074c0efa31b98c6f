"""Whose run is in a MODEL_DIR, said before T5X restores anything; T5X itself is not needed."""

import contextlib
import json

import pytest
from tiny_system import snapshot

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.runs.config_file import CONFIG, FIRST_LINE
from pemt_jax.runs.model_dir import T5X_RUN, alone, check_model_dir
from pemt_jax.t5x import run_folder
from pemt_jax.t5x.run_folder import check_folder, stored_identity, take_up

RUN = {
    "task": "films",
    "base": "b" * 64,
    "experts": [{"name": "mnli", "sha256": "1"}, {"name": "qnli", "sha256": "2"}],
    "task_feature_lengths": {"inputs": 16},
    "base_revision": "google/t5@1",
}


@pytest.fixture
def begun(tmp_path):
    """A run that was killed after T5X's first checkpoint and before its first artefact."""
    take_up([tmp_path], RUN)
    (tmp_path / "checkpoint_0").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"base": "c" * 64}, "base is 'bbb.* expected 'ccc"),
        ({"experts": RUN["experts"][::-1]}, r"experts\[0\].name is 'mnli', expected 'qnli'"),
        ({"task": "lamps"}, "task is 'films', expected 'lamps'"),
    ],
)
def test_another_run_goes_on_from_no_checkpoint(begun, changed, words):
    before = snapshot(begun)
    with pytest.raises(UsageError, match=f"{begun} holds another run, whose {words}"):
        take_up([begun], RUN | changed)
    assert snapshot(begun) == before
    take_up([begun], RUN)
    take_up([begun], RUN | {"base_revision": "google/t5@2"})  # where the same base came from


def test_a_run_of_which_nothing_is_saved_may_become_another(tmp_path):
    take_up([tmp_path], RUN)
    (tmp_path / "checkpoint_0.orbax-checkpoint-tmp").mkdir()
    take_up([tmp_path], RUN | {"task": "lamps"})
    assert stored_identity(tmp_path)["task"] == "lamps"


def test_artefacts_in_another_folder_are_of_the_same_run(begun, tmp_path_factory):
    artefacts = tmp_path_factory.mktemp("artefacts")
    take_up([artefacts, begun], RUN)
    (artefacts / "artefact").mkdir()
    with pytest.raises(UsageError, match=f"{artefacts} holds another run"):
        take_up([artefacts, tmp_path_factory.mktemp("new")], RUN | {"task": "lamps"})
    with pytest.raises(UsageError, match="holds a run of python -m t5x.train"):
        check_model_dir(artefacts)


def test_checkpoints_that_say_of_no_run_are_refused(tmp_path):
    (tmp_path / "checkpoint_500").mkdir()
    with pytest.raises(UsageError, match=f"no {T5X_RUN} that says of which run"):
        take_up([tmp_path], RUN)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_an_unreadable_file_is_one_sentence(begun, content):
    (begun / T5X_RUN).write_text(content, errors="surrogateescape")
    with pytest.raises(PemtError, match=f"{T5X_RUN} (is no|holds a list)"):
        take_up([begun], RUN)


def test_each_driver_is_refused_in_the_folder_of_the_other(begun, tmp_path_factory):
    with pytest.raises(UsageError, match="holds a run of python -m t5x.train"):
        check_model_dir(begun)
    (begun / T5X_RUN).unlink()  # as of earlier versions
    with pytest.raises(UsageError, match="holds a run of python -m t5x.train"):
        check_model_dir(begun)
    folders = [tmp_path_factory.mktemp("ours") for _ in range(2)]
    (folders[0] / "checkpoints").mkdir()
    (folders[1] / CONFIG).write_text(FIRST_LINE + "\n")
    for folder in folders:
        with pytest.raises(UsageError, match=r"holds a run of python -m pemt_jax.train"):
            check_folder("MODEL_DIR", folder)


def test_a_users_config_is_not_replaced(tmp_path):
    (tmp_path / CONFIG).write_text("MINE = 1\n")
    with pytest.raises(UsageError, match="was not written by a run and would be replaced"):
        check_folder("MODEL_DIR", tmp_path)
    (tmp_path / T5X_RUN).write_text(json.dumps(RUN))  # T5X writes it after this file
    check_folder("MODEL_DIR", tmp_path)


def test_a_folder_is_held_until_the_process_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "leases", contextlib.ExitStack())
    run_folder.hold((tmp_path,))
    run_folder.hold((tmp_path,))  # the same command
    with pytest.raises(UsageError, match=f"The MODEL_DIR {tmp_path} is in use by process"):
        with alone([tmp_path]):
            pass
    run_folder.leases.close()
    with alone([tmp_path]):
        pass
