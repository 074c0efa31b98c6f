"""A batch that cannot be in memory is refused by arithmetic."""

import pytest

from pemt_jax.common.errors import UsageError
from pemt_jax.parallel import capacity, memory


def test_a_batch_is_refused_where_its_activations_exceed_the_memory(monkeypatch):
    monkeypatch.setattr(capacity, "machine_bytes", lambda: 2**30)
    capacity.check_batch("BATCH_SIZE", 2**13, 2**6, 2**10)  # 1 GiB in 2 bytes each
    with pytest.raises(UsageError, match="BATCH_SIZE takes at least 2 GiB of memory, .* the 1 GiB"):
        capacity.check_batch("BATCH_SIZE", 2**14, 2**6, 2**10)


def test_the_memory_of_a_container_is_less_than_the_machines(monkeypatch, tmp_path):
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("4096\n")
    monkeypatch.setattr(memory, "LIMITS", [tmp_path / "none", tmp_path / "max", tmp_path / "limit"])
    assert memory.machine_bytes.__wrapped__() == 4096
