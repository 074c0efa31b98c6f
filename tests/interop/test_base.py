"""A base from wherever it comes is the same base, to a run and to those that stand on it."""

import json

import numpy as np
import pytest
from built import assemble, open_run
from tiny_system import T5, world_fixture  # noqa: F401

from pemt_jax.common.errors import PemtError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.interop import hf, t5x
from pemt_jax.interop.base import load_base, open_base
from pemt_jax.interop.hf_names import parameter_table
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY


@pytest.fixture
def pair(tmp_path):
    """One random T5 as a Hugging Face folder and as a T5X run."""
    random = np.random.default_rng(0)
    params = {
        entry.path: (0.1 * random.normal(size=entry.shape)).astype(np.float32)
        for entry in parameter_table(T5)
    }
    hf.save_hf(tmp_path / "hf", T5, params, "float32")
    t5x.save_t5x(tmp_path / "t5x" / "checkpoint_0", params)
    return tmp_path / "hf", tmp_path / "t5x"


def test_both_forms_are_one_base(pair):
    (config, params), (other_config, others) = map(load_base, pair)
    assert config == other_config and fingerprint(params) == fingerprint(others)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in others.values())
    made, other = (assemble("full", DEFAULT_VOCABULARY, base=str(base)) for base in pair)
    assert made.identity == other.identity


def test_opened_parameters_keep_their_dtype(pair, tmp_path):
    config, params = load_base(pair[0])
    hf.save_hf(tmp_path / "half", config, params, "bfloat16")
    t5x.save_t5x(tmp_path / "half_t5x" / "checkpoint_0", params, "bfloat16")
    for folder in ("half", "half_t5x"):
        _, opened = open_base(tmp_path / folder)
        assert {str(array.dtype) for array in opened.values()} == {"bfloat16"}
        assert opened.keys() == params.keys()


@pytest.mark.slow
def test_a_run_stands_on_a_t5x_checkpoint(pair, tmp_path, world):  # noqa: F811
    folder = tmp_path / "run"
    world.train(
        folder,
        steps=2,
        method="adapter",
        initial_checkpoint_path=str(pair[1]),
        library=str(tmp_path / "library"),
    )
    card = json.loads((folder / "artefact" / "card.json").read_text())
    assert card["base_fingerprint"] == fingerprint(load_base(pair[0])[1])
    assert card["config"]["base"] == str(pair[1])
    # The same base in its other form carries the run as well.
    for base in (None, str(pair[0])):
        assembly, _ = open_run(str(folder), DEFAULT_VOCABULARY, base=base)
        assert assembly.identity["base"] == card["base_fingerprint"]


def test_what_is_no_base_is_one_sentence(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("words")
    for path, message in [
        (tmp_path / "note", "There is no model folder .*nearest: 'notes'"),
        (tmp_path / "notes", "is no model folder, expected a Hugging Face T5"),
        (tmp_path / "notes" / "README.md", "is no model folder, expected a Hugging Face T5"),
    ]:
        with pytest.raises(PemtError, match=message) as caught:
            load_base(path)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
