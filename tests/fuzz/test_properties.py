"""Whatever hypothesis thinks of as a value, card, header or row: accepted, or one sentence."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentences import sentence_faults

from pemt_jax.cli import command
from pemt_jax.common.errors import PemtError
from pemt_jax.common.safetensors_file import open_weights
from pemt_jax.library import artefact
from pemt_jax.run_config import TrainConfig
from pemt_jax.tasks.sources.json_rows import JsonRows
from pemt_jax.train import train

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # the same examples in every run of the suite
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)  # surrogates too
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**31, 2**63, -(2**63), 10**400, 0, -1])
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
BYTES = st.binary(max_size=200)
FIELDS = sorted(TrainConfig.parameters())


@contextlib.contextmanager
def one_sentence():
    """Context whose only errors are the package's own, of one sentence each."""
    try:
        yield
    except PemtError as error:
        line = f"error: {' '.join(str(error).split())}"
        # How long and printable it is, is up to the function that prints it.
        wrong = sentence_faults(line)
        assert not [fault for fault in wrong if "characters" not in fault], line


def test_a_judge_of_properties_sees_a_bad_sentence():
    with pytest.raises(AssertionError), one_sentence():
        raise PemtError("Found 3, expected <class 'int'> or the like.")


LITERALS = st.one_of(
    JSON.map(repr),
    TEXT,
    st.sampled_from(["@nothing", "%NOTHING", "@optimizers.make_optimizer()", "()", "None"]),
)


@QUICK
@given(name=st.sampled_from(FIELDS), value=LITERALS)
def test_values_of_gin(name, value):
    given = {
        "MODEL_DIR": "run",
        "MIXTURE_OR_TASK_NAME": "x",
        "TASK_FEATURE_LENGTHS": "{'inputs': 8, 'targets': 8}",
        "BATCH_SIZE": "8",
        "TRAIN_STEPS": "3",
    } | {name.upper(): value}
    with one_sentence():
        TrainConfig.of(
            **command.arguments_of(train, [f"--gin.{n}={value}" for n, value in given.items()])
        )


@QUICK
@given(content=st.one_of(JSON.map(json.dumps).map(str.encode), BYTES))
def test_cards_of_anything(tmp_path, content):
    (tmp_path / "card.json").write_bytes(content)
    with one_sentence():
        artefact.read_card(tmp_path)


@QUICK
@given(field=st.sampled_from(sorted(artefact.Card.__dataclass_fields__)), value=JSON)
def test_cards_whose_field_is_anything(tmp_path, field, value):
    """Sealed: only the check of each field stands between the value and its users."""
    card = artefact.Card("expert", "pemt_source", "t", "b" * 64)
    artefact.write_card(tmp_path / "card.json", card)
    fields = json.loads((tmp_path / "card.json").read_text()) | {field: value}
    fields.pop("card_sha256")
    sealed = fields | {"card_sha256": artefact._digest(fields)}
    (tmp_path / "card.json").write_text(json.dumps(sealed))
    with one_sentence():
        artefact.read_card(tmp_path)


ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "F8_E4M3"]), JSON),
        "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), JSON),
        "data_offsets": st.one_of(st.just([0, 16]), JSON),
    },
)
HEADERS = st.one_of(st.dictionaries(TEXT, ENTRIES, max_size=2), JSON).map(json.dumps)


@QUICK
@given(header=HEADERS, size=st.integers(0, 40), longer=st.integers(-9, 9))
def test_headers_of_safetensors(tmp_path, header, size, longer):
    text = header.encode()
    length = struct.pack("<Q", max(0, len(text) + longer))
    (tmp_path / "x.safetensors").write_bytes(length + text + bytes(size))
    with one_sentence():
        for array in open_weights(tmp_path / "x.safetensors").values():
            np.asarray(array)


ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"text": st.one_of(TEXT, JSON)}).map(json.dumps).map(str.encode),
        JSON.map(json.dumps).map(str.encode),
        BYTES,
    ),
    max_size=4,
)


@QUICK
@given(lines=ROWS)
def test_rows_of_json_lines(tmp_path, lines):
    file = tmp_path / f"{abs(hash(tuple(lines)))}.jsonl"
    file.write_bytes(b"\n".join(lines))
    with one_sentence():
        JsonRows({"train": str(file)}, "mine").columns("train", ["text"])
