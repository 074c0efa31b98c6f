"""PyTorch's files: read where torch is, never executed, one sentence for everything else."""

import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from pemt_jax.common.errors import PemtError
from pemt_jax.interop.torch_files import _refusal as refusal
from pemt_jax.interop.torch_files import load_torch_file


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason='needs torch: pip install "pemt_jax[torch]"')


@pytest.fixture
def sentence():
    """Load a file that cannot be loaded and return the one sentence about it."""

    def fail(path):
        with pytest.raises(PemtError) as caught:
            load_torch_file(path)
        message = str(caught.value)
        assert str(path) in message and message.endswith(".") and "\n" not in message
        return message

    return fail


class Hostile:
    """Makes a file when it is unpickled by a loader that trusts its input."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


def test_without_torch_the_sentence_says_how_to_get_it(tmp_path, monkeypatch, sentence):
    (tmp_path / "lora.pt").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert 'pip install "pemt_jax[torch]"' in sentence(tmp_path / "lora.pt")


def test_a_torch_whose_safe_loading_is_not_safe_is_not_used(tmp_path, monkeypatch, sentence):
    (tmp_path / "lora.pt").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.5.1+cpu"))
    assert "torch 2.6 or later, found 2.5.1+cpu" in sentence(tmp_path / "lora.pt")


def test_a_missing_file_has_a_nearest_name(tmp_path, sentence):
    (tmp_path / "lora.pt").touch()
    assert "(nearest: 'lora.pt')" in sentence(tmp_path / "loras.pt")


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_back_in_their_dtypes_and_layouts(tmp_path, torch, zipped):
    made = {
        "float": torch.arange(12.0).reshape(3, 4),
        "half": torch.ones(2, dtype=torch.float16),
        "brain": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "none": torch.zeros(0, 4),
    }
    made["transposed"] = made["float"].T
    made["weight"] = torch.nn.Parameter(made["float"])
    torch.save(made, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    back = load_torch_file(tmp_path / "w.bin")
    assert back.keys() == made.keys()
    assert back["brain"].dtype == ml_dtypes.bfloat16 and back["half"].dtype == np.float16
    for name, tensor in made.items():
        assert back[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(back[name].astype(np.float32), tensor.detach().float())


@pytest.mark.parity
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "nested"])
def test_code_in_a_file_is_not_executed(tmp_path, torch, sentence, form):
    path, victim = tmp_path / "lora.pt", tmp_path / "victim"
    content = {"a": torch.zeros(2), "b": Hostile(victim)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Hostile(victim)))
    else:
        torch.save(
            [content] if form == "nested" else content,
            path,
            _use_new_zipfile_serialization=form != "legacy",
        )
    message = sentence(path)
    assert not victim.exists()
    assert form == "pickle" or ("open" in message and "nothing was executed" in message)
    pickle.loads(pickle.dumps(Hostile(victim))).close()
    assert victim.exists()  # it is hostile indeed


@pytest.mark.parity
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "list", "number", "sparse", "module"])
def test_what_is_no_state_dict_is_one_sentence(tmp_path, torch, sentence, damage):
    path = tmp_path / "w.pt"
    torch.save(
        {
            "list": [torch.zeros(2)],
            "number": {"epoch": 3},
            "sparse": {"a": torch.zeros(2, 2).to_sparse()},
            "module": torch.nn.Linear(2, 2),
        }.get(damage, {"a": torch.zeros(99)}),
        path,
    )
    if damage in ("empty", "cut", "text"):
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[:-200], "text": b"not weights"}[damage])
    expected = {
        "list": "holds a list",
        "number": "a int under 'epoch'",
        "sparse": "dense",
        "module": "torch.nn.modules.linear.Linear",
    }
    assert expected.get(damage, "truncated") in sentence(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_pickle_wants_to_run_is_named_whatever_torch_says(tmp_path, protocol, zipped):
    path, victim = tmp_path / "w.pt", tmp_path / "victim"
    content = pickle.dumps({"a": Hostile(victim)}, protocol=protocol)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", content)
    else:  # the earlier form has other pickles before it
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + content)
    assert "open when it is opened, expected nothing but tensors" in str(refusal(path, ""))
    assert not victim.exists()
    path.write_bytes(content[:-20])
    assert str(path) in str(refusal(path, ""))
