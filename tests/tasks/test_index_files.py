"""Index files give the original order, or say what is wrong with them."""

import json

import gin
import pytest

from pemt_jax.common.errors import PemtError
from pemt_jax.tasks.sources import index_files


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_INDEX_FILES", str(tmp_path))
    yield lambda text: (tmp_path / "mine.json").write_text(text)
    gin.clear_config()


def test_the_order_is_that_of_the_file(index):
    index(json.dumps({"train": [2, 0, 1], "validation": [3]}))
    assert index_files.original_order("mine", "train", 3).tolist() == [2, 0, 1]
    assert index_files.original_order("mine", "validation", 9).tolist() == [3]
    assert index_files.original_order("mine", "test", 9) is None
    assert index_files.original_order("other", "train", 3) is None
    assert index_files.identity("other") is None and len(index_files.identity("mine")) == 64


def test_gin_names_the_folder(tmp_path):
    (tmp_path / "mine.json").write_text('{"train": [0]}')
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks.sources import index_files\n"
        f"index_files.folder_of_index_files.folder = '{tmp_path}'\n"
    )
    assert index_files.original_order("mine", "train", 1).tolist() == [0]
    gin.clear_config()


@pytest.mark.parametrize(
    "content",
    [
        '{"train": [0, 0]}',
        '{"train": [0, 3]}',
        '{"train": [-1]}',
        '{"train": [[0]]}',
        '{"train": "x"}',
        "oops",
        "[]",
    ],
)
def test_damaged_files_are_one_sentence(index, content):
    index(content)
    with pytest.raises(PemtError, match="mine.json (does not list|is damaged|is no JSON)"):
        index_files.original_order("mine", "train", 3)
