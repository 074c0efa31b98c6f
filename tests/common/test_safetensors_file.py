"""A damaged or hostile safetensors file is one sentence, and what is right in it is read."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from pemt_jax.common.errors import PemtError
from pemt_jax.common.safetensors_file import DTYPES, open_weights


def write(path, header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


def test_files_of_the_library_are_read(tmp_path):
    arrays = {
        f"{dtype}.{len(shape)}": np.ones(shape, dtype)
        for shape in ((), (0, 2), (3,), (2, 3, 2))
        for dtype in DTYPES.values()
    }
    save_file(arrays, tmp_path / "theirs", {"made": "h\u00e9re"})
    opened = open_weights(tmp_path / "theirs")
    assert opened.keys() == arrays.keys()
    for name, array in arrays.items():
        found = np.asarray(opened[name])
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "expecting"),
        (b"[]", "its header is no object"),
        (b"\xff", "byte 0xff in line 1"),
        (b"[" * 100_000, "nested too deep"),
        ({"a": 3}, "the entry of 'a' has no shape"),
        ({"a": {}}, "data_offsets"),
        (entry(data_offsets=[0, 12]), "bytes were expected"),
        (entry(data_offsets=[4, 16]), "place of 'a' is wrong"),
        (entry(data_offsets=[16, 0]), "place of 'a' is wrong"),
        (entry(shape=[2, 3]), "size of 'a' is wrong"),
        (entry(shape=[-2, -2]), "size of 'a' is wrong"),
        (entry(shape=[2.0, 2]), "the entry of 'a' has no shape"),
        (entry(shape=4), "the entry of 'a' has no shape"),
        (entry() | {"b": entry()["a"]}, "place of 'b' is wrong"),  # the same bytes twice
    ],
)
def test_a_damaged_header_is_one_sentence(tmp_path, header, reason):
    path = write(tmp_path / "w.safetensors", header)
    with pytest.raises(PemtError, match="Expected a whole safetensors file") as caught:
        open_weights(path)
    message = str(caught.value)
    assert reason in message and str(path) in message
    assert message.endswith(".") and "\n" not in message


def test_a_dtype_that_numpy_has_not_is_named(tmp_path):
    header = entry(dtype="F8_E4M3", shape=[16])
    with pytest.raises(PemtError, match="'a' in .* is of dtype 'F8_E4M3', expected one of U64"):
        open_weights(write(tmp_path / "w.safetensors", header))


def test_a_file_that_became_shorter_is_found_when_it_is_read(tmp_path):
    path = write(tmp_path / "w.safetensors", entry())
    opened = open_weights(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PemtError, match=r"truncated, damaged .*\(it ends at byte 88\)"):
        np.asarray(opened["a"])
    path.unlink()
    with pytest.raises(PemtError, match="There is no weight file"):
        np.asarray(opened["a"])
