"""The weight files: right numbers whatever the memory layout, and never half a file."""

import os

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pemt_jax.common import hashing, weights
from pemt_jax.common.errors import PemtError
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.safetensors_file import open_weights


def test_transposed_kernel_keeps_its_numbers(tmp_path):
    kernel_DF = np.arange(12, dtype=np.float32).reshape(3, 4)
    weights.save_weights(
        tmp_path / "w.safetensors", {"kernel": kernel_DF.T, "every_other": kernel_DF[:, ::2]}
    )
    other_reader = load_file(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(other_reader["kernel"], kernel_DF.T)
    np.testing.assert_array_equal(other_reader["every_other"], kernel_DF[:, ::2])


def test_bytes_are_those_of_the_library(tmp_path):
    arrays = {
        f"{dtype}.{'x' * len(shape)}": np.ones(shape, dtype)
        for shape in ((), (0, 2), (3,), (2, 3, 2))
        for dtype in weights.CODES
    }
    save_file(arrays, tmp_path / "theirs")
    weights.save_weights(tmp_path / "ours", dict(reversed(arrays.items())))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    save_file(arrays, tmp_path / "theirs", {"made": "h\u00e9re"})
    weights.save_weights(tmp_path / "ours", arrays, {"made": "h\u00e9re"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    with pytest.raises(PemtError, match="'c' is an array of complex64, expected one of uint64"):
        weights.save_weights(tmp_path / "ours", {"c": np.ones(2, np.complex64)})


def test_lazy_arrays_are_read_one_by_one_when_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PART_BYTES", 20)  # an array is more than one part
    numbers, log = np.arange(24, dtype=np.float32).reshape(6, 4), []

    def lazy(name):
        def read(index):
            log.append(name)
            return numbers[index]

        return LazyArray(numbers.shape, numbers.dtype, read)

    arrays = {"a": lazy("a"), "b": lazy("b").T, "c": lazy("c").astype(np.float16).T}
    weights.save_weights(tmp_path / "w.safetensors", arrays)
    assert log == ["a", "b", "c"]
    expected = {"a": numbers, "b": numbers.T, "c": numbers.T.astype(np.float16)}
    for opened in (load_file(tmp_path / "w.safetensors"), open_weights(tmp_path / "w.safetensors")):
        for name, array in expected.items():
            assert (opened[name].shape, opened[name].dtype) == (array.shape, array.dtype)
            np.testing.assert_array_equal(np.asarray(opened[name]), array)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    axes=st.randoms(),
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "int32", ">f4"]),
)
def test_any_layout_and_dtype_comes_back(tmp_path_factory, shape, axes, dtype):
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.dtype(dtype))
    order = list(range(len(shape)))
    axes.shuffle(order)
    array = array.transpose(order)
    weights.save_weights(path, {"a": array})
    back = weights.load_weights(path)["a"]
    assert back.shape == array.shape and back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back.astype(np.float32), array.astype(np.float32))


def test_bfloat16_jax_arrays_and_metadata(tmp_path):
    array = jnp.asarray([[1.5, -2.0]], jnp.bfloat16)
    weights.save_weights(tmp_path / "w.safetensors", {"a": array}, {"made": "here"})
    back = weights.load_weights(tmp_path / "w.safetensors")["a"]
    assert back.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back, np.asarray(array))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "pickle", "folder"])
def test_unreadable_file_is_one_sentence(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    weights.save_weights(path, {"a": np.ones((4, 4), np.float32)})
    whole = path.read_bytes()
    if damage == "missing":
        path.rename(tmp_path / "weight.safetensors")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        pickled = b"\x80\x02}q\x00." * 9
        path.write_bytes({"empty": b"", "cut": whole[:-5], "pickle": pickled}[damage])
    with pytest.raises(PemtError) as caught:
        weights.load_weights(path)
    message = str(caught.value)
    assert str(path) in message and message.endswith(".") and "\n" not in message
    if damage == "missing":
        assert "'weight.safetensors'" in message


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    weights.save_weights(path, {"a": np.zeros(2, np.float32)})

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(PemtError, match="No space left"):
        weights.save_weights(path, {"a": np.ones(2, np.float32)})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["w.safetensors"]
    np.testing.assert_array_equal(weights.load_weights(path)["a"], 0)


def test_fingerprint_is_of_the_weights_not_of_the_file():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = hashing.fingerprint({"a": a, "b": a.T})
    assert same == hashing.fingerprint(
        {"b": np.ascontiguousarray(a.T), "a": jnp.asarray(a, jnp.bfloat16)}
    )
    assert same != hashing.fingerprint({"a": a, "b": a.T + 1})
    assert same != hashing.fingerprint({"a": a, "c": a.T})
    assert hashing.fingerprint({"a": a}) != hashing.fingerprint({"a": a.reshape(3, 2)})


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert hashing.sha256_file(tmp_path / "f").startswith("ba7816bf8f01cfea")
    with pytest.raises(PemtError, match="Cannot read"):
        hashing.sha256_file(tmp_path / "g")
