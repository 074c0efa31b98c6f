"""The folder that a run leaves: complete or absent, and a flipped byte anywhere is noticed."""

import dataclasses
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.library import artefact
from pemt_jax.library.artefact import CARD, WEIGHTS, Card

BASE = "a" * 64
SMALL = Card(
    kind="target",
    method="pemt_target",
    task="amazon",
    base_fingerprint=BASE,
    base_name="mini_t5",
    description="Is the review positive?",
    experts=(("tweets", "1" * 64), ("movies", "2" * 64)),
    rank=8,
    config={"lr": 3e-3, "nested": {"steps": [1, 2]}},
    metrics={"accuracy": 0.75},
)
ARRAYS = {
    "gate/kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "adapter/kernel": np.ones((2, 2), ml_dtypes.bfloat16),
}


def assert_untouched(folder, before):
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_arrays_and_card_come_back(tmp_path):
    written = artefact.write_artefact(tmp_path / "runs" / "amazon", ARRAYS, SMALL)
    arrays, card = artefact.read_artefact(tmp_path / "runs" / "amazon", BASE)
    assert card == written == artefact.read_card(tmp_path / "runs" / "amazon")
    assert dataclasses.replace(card, versions={}, sha256="") == SMALL
    assert set(card.versions) == {"jax", "flax", "pemt_jax"}
    assert list(arrays) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    assert os.listdir(tmp_path / "runs") == ["amazon"]


@settings(max_examples=20, deadline=None)
@given(
    text=st.text(),
    metrics=st.dictionaries(st.text(), st.floats(-1e9, 1e9), max_size=3),
    experts=st.lists(st.tuples(st.text(), st.text()), max_size=3),
)
def test_any_text_survives_in_a_card(tmp_path_factory, text, metrics, experts):
    folder = tmp_path_factory.mktemp("card") / "a"
    card = dataclasses.replace(SMALL, description=text, metrics=metrics, experts=tuple(experts))
    assert artefact.write_artefact(folder, ARRAYS, card) == artefact.read_card(folder)


def test_numpy_scalars_are_valid_metrics_and_nan_is_not(tmp_path):
    good = dataclasses.replace(SMALL, metrics={"f1": np.float32(0.5)})
    assert artefact.write_artefact(tmp_path / "a", ARRAYS, good).metrics["f1"] == 0.5
    bad = dataclasses.replace(SMALL, metrics={"f1": float("nan")})
    with pytest.raises(PemtError, match="amazon"):
        artefact.write_artefact(tmp_path / "b", ARRAYS, bad)
    assert os.listdir(tmp_path) == ["a"]


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    folder = tmp_path / "a"
    artefact.write_artefact(folder, ARRAYS, SMALL)
    reference = artefact.read_card(folder)
    for name in (CARD, WEIGHTS):
        whole = (folder / name).read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1
            (folder / name).write_bytes(damaged)
            try:
                arrays, card = artefact.read_artefact(folder)
            except PemtError as error:
                assert "\n" not in str(error) and name in str(error)
            else:  # white space between two tokens of the JSON
                assert name == CARD and whole[position : position + 1].isspace()
                assert card == reference
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights_are_refused(tmp_path, keep):
    folder = tmp_path / "a"
    artefact.write_artefact(folder, ARRAYS, SMALL)
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PemtError, match="damaged or exchanged"):
        artefact.read_artefact(folder)


def test_weights_of_another_artefact_are_refused(tmp_path):
    artefact.write_artefact(tmp_path / "a", ARRAYS, SMALL)
    artefact.write_artefact(tmp_path / "b", {"x": np.zeros(2)}, SMALL)
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    with pytest.raises(PemtError, match="damaged or exchanged"):
        artefact.read_artefact(tmp_path / "a")
    with pytest.raises(PemtError, match="has no weights.safetensors"):
        artefact.read_artefact(tmp_path / "b")


def test_another_base_is_refused_and_both_are_named(tmp_path):
    artefact.write_artefact(tmp_path / "a", ARRAYS, SMALL)
    with pytest.raises(PemtError, match="'mini_t5' with fingerprint aaaaaaaaaaaa, .*cccccccccccc"):
        artefact.read_artefact(tmp_path / "a", "c" * 64)


def test_a_missing_artefact_has_a_nearest_name(tmp_path):
    artefact.write_artefact(tmp_path / "amazon", ARRAYS, SMALL)
    with pytest.raises(PemtError, match=r"does not exist.*\(nearest: 'amazon'\)"):
        artefact.read_artefact(tmp_path / "amazn")
    with pytest.raises(PemtError, match="has no card.json"):
        artefact.read_artefact(tmp_path)


def with_card(folder, change):
    """Rewrite the card of `folder` with a valid digest, as another program would."""
    fields = json.loads((folder / CARD).read_text())
    del fields["card_sha256"]
    change(fields)
    (folder / CARD).write_text(json.dumps(fields | {"card_sha256": artefact._digest(fields)}))


def test_unknown_keys_of_a_card_are_tolerated(tmp_path):
    written = artefact.write_artefact(tmp_path / "a", ARRAYS, SMALL)
    with_card(tmp_path / "a", lambda fields: fields.update(colour="red"))
    assert artefact.read_artefact(tmp_path / "a")[1] == written


@pytest.mark.parametrize(
    "field, value",
    [
        ("kind", "gate"),
        ("method", 3),
        ("rank", "8"),
        ("rank", True),
        ("rank", -1),
        ("experts", {"a": "b"}),
        ("experts", [["a", "b"]]),
        ("metrics", {"f1": "high"}),
        ("versions", {"jax": 1}),
        ("config", []),
        ("sha256", None),
        ("task", None),
    ],
)
def test_a_card_with_a_wrong_type_is_refused(tmp_path, field, value):
    artefact.write_artefact(tmp_path / "a", ARRAYS, SMALL)
    with_card(tmp_path / "a", lambda fields: fields.update({field: value}))
    with pytest.raises(PemtError, match=f"has {field} = .*, expected "):
        artefact.read_artefact(tmp_path / "a")
    with_card(tmp_path / "a", lambda fields: fields.pop(field))
    with pytest.raises(PemtError, match=f"has {field} = None, expected "):
        artefact.read_artefact(tmp_path / "a")


def test_an_artefact_of_the_same_kind_is_replaced(tmp_path):
    artefact.write_artefact(tmp_path / "a", ARRAYS, SMALL)
    again = dataclasses.replace(SMALL, metrics={"accuracy": 0.8})
    artefact.write_artefact(tmp_path / "a", {"x": np.zeros(2)}, again)
    arrays, card = artefact.read_artefact(tmp_path / "a")
    assert list(arrays) == ["x"] and card.metrics == {"accuracy": 0.8}
    assert os.listdir(tmp_path) == ["a"]


def test_an_empty_folder_is_filled(tmp_path):
    artefact.write_artefact(tmp_path, ARRAYS, SMALL)
    artefact.read_artefact(tmp_path)


@pytest.mark.parametrize(
    "foreign", ["notes beside an artefact", "other files", "file", "other kind", "damaged card"]
)
def test_what_is_no_such_artefact_is_never_touched(tmp_path, foreign):
    folder = tmp_path / "a"
    if foreign == "file":
        folder.write_text("precious")
    elif foreign == "other files":
        folder.mkdir()
        (folder / "thesis.tex").write_text("precious")
    else:
        kind = "expert" if foreign == "other kind" else "target"
        artefact.write_artefact(folder, ARRAYS, dataclasses.replace(SMALL, kind=kind))
        if foreign == "notes beside an artefact":
            (folder / "notes.txt").write_text("precious")
        if foreign == "damaged card":
            (folder / CARD).write_text("{}")
    before = {p.name: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else None
    with pytest.raises(PemtError):
        artefact.write_artefact(folder, ARRAYS, SMALL)
    if before is None:
        assert folder.read_text() == "precious"
    else:
        assert_untouched(folder, before)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", ["save_weights", "_to_json", "os.replace"])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path, monkeypatch, failing):
    folder = tmp_path / "a"
    artefact.write_artefact(folder, ARRAYS, SMALL)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    real_replace = os.replace

    def full_disk(source, target=None, *_):
        # for os.replace: only the last step, the new folder into place, fails
        if failing == "os.replace" and not (
            str(target) == str(folder) and not str(source).endswith(".before")
        ):
            return real_replace(source, target)
        raise OSError(28, "No space left on device")

    target = "os.replace" if failing == "os.replace" else f"pemt_jax.library.artefact.{failing}"
    monkeypatch.setattr(target, full_disk)
    with pytest.raises(PemtError, match="No space left"):
        artefact.write_artefact(folder, {"x": np.zeros(2)}, SMALL)
    monkeypatch.undo()
    assert_untouched(folder, before)
    assert os.listdir(tmp_path) == ["a"]


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'gate' is no kind"):
        artefact.write_artefact(tmp_path / "a", ARRAYS, dataclasses.replace(SMALL, kind="gate"))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "a b", "-x", "a\n", "a" * 101]
)
def test_names_that_leave_their_folder_are_refused(name):
    with pytest.raises(UsageError):
        artefact.check_name(name)


@pytest.mark.parametrize("name", ["vader_movies", "sst2", "v1.0-b", "superglue-record", "_x"])
def test_plain_names_are_accepted(name):
    artefact.check_name(name)


KILLED = """
import os, signal, sys
import numpy as np
from pemt_jax.common import storage
from pemt_jax.library import artefact

folder, moment = sys.argv[1:]
card = artefact.Card("target", "adapter", "new", "b" * 64)
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "before the renames":
    storage.disk_folders.put_in_place = die
elif moment == "after them":
    storage.shutil.rmtree = lambda path, **_: os.path.exists(path) and die()
else:
    replace = os.replace
    def second(source, target):
        if str(target) == folder:
            die()
        replace(source, target)
    os.replace = second
artefact.write_artefact(folder, {"x": np.ones(3, np.float32)}, card)
"""


@pytest.mark.parametrize(
    "moment, task", [("before the renames", "old"), ("between them", "old"), ("after them", "new")]
)
def test_a_kill_while_replacing_leaves_the_old_or_the_new(tmp_path, moment, task):
    folder = tmp_path / "a"
    old = dataclasses.replace(SMALL, task="old")
    artefact.write_artefact(folder, ARRAYS, old)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folder, moment], capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    # Between the renames only the hidden predecessor is there, and readers find it.
    assert folder.exists() == (moment != "between them")
    assert artefact.read_artefact(folder)[1].task == task
    artefact.write_artefact(folder, ARRAYS, dataclasses.replace(SMALL, task="again"))
    assert artefact.read_artefact(folder)[1].task == "again"
    assert os.listdir(tmp_path) == ["a"]  # what the killed writing has left is gone


@pytest.mark.parametrize(
    "change, found",
    [
        ({"metrics": {"a": 10**400}}, "metrics = .*, expected an object of finite numbers"),
        ({"rank": -1}, "rank = -1, expected a whole number, 0 or more"),
        ({"experts": "x"}, "experts = 'x', expected a list of names with their sha256"),
        ({"kind": "x" * 10**5}, "kind = 'x{99}\\.\\.\\., expected 'expert' or 'target'"),
        ({"task": 3}, "task = 3, expected a text"),
    ],
)
def test_a_field_of_another_kind_is_named_in_words(tmp_path, change, found):
    card = dataclasses.asdict(Card("expert", "m", "t", "f")) | change
    card = json.loads(json.dumps(card))
    text = json.dumps(card | {"card_sha256": artefact._digest(card)})
    (tmp_path / CARD).write_text(text)
    with pytest.raises(PemtError, match=found):
        artefact.read_card(tmp_path)
