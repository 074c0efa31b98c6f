"""A part of an array that is on disk has the numbers that the whole has there."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pemt_jax.common import safetensors_file
from pemt_jax.common.lazy_array import ALIGNMENT, COLUMNS, LazyArray, aligned, for_device, lazy
from pemt_jax.common.safetensors_file import open_weights
from pemt_jax.common.weights import save_weights


@st.composite
def cuts(draw, size: int) -> slice:
    """A slice as JAX asks for one: of Python's numbers or open, perhaps of nothing."""
    start, stop = sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    return draw(st.sampled_from([slice(start, stop), slice(None), slice(start, None)]))


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "uint8"]),
    steps=st.lists(st.sampled_from(["cut", "T", "bfloat16", "float32"]), max_size=4),
    run_bytes=st.sampled_from([1, 7, 2**12]),
    part_bytes=st.sampled_from([1, 5, 2**20]),
)
def test_what_is_read_of_a_file_is_what_the_array_has(
    tmp_path_factory, data, shape, dtype, steps, run_bytes, part_bytes
):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.dtype(dtype))
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    save_file({"before": np.ones(3, np.uint8), "a": array, "behind": np.ones(2)}, path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(safetensors_file, "RUN_BYTES", run_bytes)
        patched.setattr(safetensors_file, "PART_BYTES", part_bytes)
        unread = open_weights(path)["a"]
        for step in steps:
            if step == "cut":
                index = tuple(data.draw(cuts(size)) for size in array.shape)
                array, unread = array[index], unread[index]
            elif step == "T":
                array, unread = array.T, unread.T
            else:
                array, unread = array.astype(step), unread.astype(step)
        found = np.asarray(unread)
    assert (unread.shape, unread.dtype, unread.nbytes) == (array.shape, array.dtype, array.nbytes)
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(found, array)


class Counted:
    """Lets `safetensors_file` read and counts the bytes."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        read = safetensors_file._read_bytes

        def counting(file, position, part):
            self.bytes += len(part)
            read(file, position, part)

        monkeypatch.setattr(safetensors_file, "_read_bytes", counting)


def test_only_the_bytes_of_a_part_are_read(tmp_path, monkeypatch):
    array = np.arange(64 * 4096, dtype=np.float32).reshape(64, 4096)
    save_weights(tmp_path / "w.safetensors", {"a": array, "b": array})
    counted, unread = Counted(monkeypatch), open_weights(tmp_path / "w.safetensors")["b"]
    for part, share in [
        (unread[8:16], 1 / 8),
        (unread[:, :2048], 1 / 2),  # runs of 8 KiB
        (unread.T[2048:, :32], 1 / 4),
        (unread.astype(ml_dtypes.bfloat16)[3:4, 1024:2048], 1 / 256),
        (unread[:, :8], 1),  # runs of 32 bytes, with what is between them
        (unread[5:5], 0),
    ]:
        counted.bytes = 0
        np.asarray(part)
        assert counted.bytes == share * array.nbytes


def test_a_part_of_a_part_and_an_array_in_memory(tmp_path):
    array = np.arange(30).reshape(5, 6)
    part = lazy(array)[1:][:3, 2:5].T[1:]
    assert lazy(part) is part
    np.testing.assert_array_equal(np.asarray(part), array[1:][:3, 2:5].T[1:])
    np.testing.assert_array_equal(np.asarray(lazy(array)[-2:]), array[-2:])
    for steps in (slice(None, None, 2), slice(3, 1, -1)):
        with pytest.raises(ValueError, match="expected slices of adjacent entries"):
            lazy(array)[steps]


def test_memory_for_a_device_is_aligned_and_has_the_numbers():
    wide = np.arange(3 * (COLUMNS + 5)).reshape(COLUMNS + 5, 3)
    for array in (wide.T, wide[:, 1:], wide[0, 0], np.float32(3), np.zeros((0, 4)), wide[1:]):
        array = np.asarray(array)
        copy = for_device(array)
        assert copy.flags.c_contiguous and (copy.ctypes.data % ALIGNMENT == 0 or not copy.size)
        assert copy.dtype == array.dtype
        np.testing.assert_array_equal(copy, array)
    ready = aligned((2, 3), np.dtype(np.float32))
    assert for_device(ready) is ready


def test_a_cast_is_made_of_what_is_read():
    asked = []

    def read(index):
        asked.append(index)
        return np.ones([piece.stop - piece.start for piece in index], np.float32)

    half = LazyArray((4, 6), np.dtype(np.float32), read).astype("bfloat16")
    for row, column in itertools.product((0, 2), (0, 3)):
        part = np.asarray(half[row : row + 2, column : column + 3])
        assert part.dtype == ml_dtypes.bfloat16 and part.shape == (2, 3)
    assert asked == [
        (slice(0, 2), slice(0, 3)),
        (slice(0, 2), slice(3, 6)),
        (slice(2, 4), slice(0, 3)),
        (slice(2, 4), slice(3, 6)),
    ]
