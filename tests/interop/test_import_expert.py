"""Experts of the authors' files and of PEFT enter the library: numbers, prompts, refusals.

torch is not needed here: `load_torch_file`, which has tests of its own, is replaced by arrays.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_system import random_base

from pemt_jax.cli.library_command import main
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.common.weights import save_weights
from pemt_jax.config import T5Config
from pemt_jax.interop import import_expert as importing
from pemt_jax.interop import reference
from pemt_jax.interop.hf import load_hf, save_hf
from pemt_jax.interop.import_expert import Request, import_peft, import_reference
from pemt_jax.interop.reference import from_reference
from pemt_jax.library import expert as library
from pemt_jax.run_config import MINI_T5

CONFIG = T5Config(
    vocab_size=256,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
TEXT = "Say the mood of a text."


@pytest.fixture(scope="module")
def stage1():
    """The authors' tensors of stage 1: the whole state dict of their own model."""
    with np.load(Path(__file__).parents[1] / "data" / "oracle_tiny.npz") as file:
        return {
            name.removeprefix("s1/w/"): file[name]
            for name in file.files
            if name.startswith("s1/w/")
        }


@pytest.fixture
def base(tmp_path, stage1):
    """Its backbone, whose embedding has more rows than they keep."""
    params = from_reference(CONFIG, stage1)
    more = np.ones((4, 32), np.float32)
    params["token_embedder/embedding"] = np.concatenate([params["token_embedder/embedding"], more])
    t5 = T5Config(**{**vars(CONFIG), "vocab_size": 260})
    save_hf(tmp_path / "base", t5, params, "float32")
    return tmp_path / "base"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write a run's folder of files that hold the given tensors."""
    contents = {}
    monkeypatch.setattr(reference, "load_torch_file", lambda path: contents[Path(path)])

    def write(**tensors):
        folder = tmp_path / "theirs"
        folder.mkdir(exist_ok=True)
        for name, content in tensors.items():
            path = folder / name.replace("_pt", ".pt").replace("_bin", ".bin")
            path.touch()
            contents[path] = content
        return folder

    return write


def small(tensors):
    return {
        "lora_pt": {n: t for n, t in tensors.items() if "lora_" in n},
        "task_embedding_pt": {"task_shared": tensors["task_shared"]},
    }


@pytest.mark.parametrize("whole", [False, True])
def test_a_stage_1_run_of_the_authors_becomes_an_expert(tmp_path, stage1, base, files, whole):
    path = files(pytorch_model_bin=stage1) if whole else files(**small(stage1))
    import_reference(
        Request(tmp_path / "library", "mnli", path, base=str(base), prompt=TEXT, task="pemt_mnli")
    )
    expert = library.load_expert(tmp_path / "library", "mnli", fingerprint(load_hf(base)[1]))
    assert (expert.task, expert.prompt_text, expert.rank) == ("pemt_mnli", TEXT, 64)
    np.testing.assert_array_equal(expert.prompt, stage1["task_shared"])
    assert len(expert.lora) == 4
    a_FR, b_RD = expert.lora["decoder/layers_1/mlp/wo"]
    output = "decoder.block.1.layer.2.DenseReluDense.wo"
    np.testing.assert_array_equal(a_FR, stage1[f"{output}.lora_A"].T)
    np.testing.assert_array_equal(b_RD, stage1[f"{output}.lora_B"].T)


def without(tensors, part):
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: without(t, "decoder.block.1.layer.2"), "lacks decoder/layers_1/mlp/wo"),
        (lambda t: without(t, "lora_B"), "incomplete"),
        (
            lambda t: {n.replace("block.1.", "block.2."): v for n, v in t.items()},
            "layers_2/mlp/wo, which the base lacks",
        ),
        (lambda t: {n: v[:, :9] for n, v in t.items()}, r"lora_a \(9, 64\) and lora_b \(9, 32\)"),
        (lambda t: {f"{n}.0": v for n, v in t.items()}, "experts/lora_., which stage 1"),
        (lambda t: t | {"optimizer": np.ones(2)}, "'optimizer' .* belongs to no part"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, stage1, base, files, change, message):
    parts = small(stage1)
    path = files(**parts | {"lora_pt": change(parts["lora_pt"])})
    with pytest.raises(PemtError, match=message):
        import_reference(Request(tmp_path / "library", "x", path, base=str(base)))
    assert not (tmp_path / "library").exists()


def test_another_backbone_a_missing_file_and_a_wrong_prompt(tmp_path, stage1, base, files):
    request = Request(tmp_path / "library", "x", tmp_path / "theirs", base=str(base))
    with pytest.raises(UsageError, match="lora.pt and task_embedding.pt, or .* found none"):
        import_reference(request)
    files(lora_pt={})
    with pytest.raises(UsageError, match="found lora.pt"):
        import_reference(request)
    files(
        task_embedding_pt={"task_shared": np.ones((4, 31), np.float32)},
        **{"lora_pt": small(stage1)["lora_pt"]},
    )
    with pytest.raises(PemtError, match=r"lora_b \(64, 32\) .* a prompt \(4, 31\)"):
        import_reference(request)
    name = "encoder.final_layer_norm.weight"
    files(pytorch_model_bin=stage1 | {name: stage1[name] * 2})
    (tmp_path / "theirs" / "lora.pt").unlink()
    with pytest.raises(PemtError, match="differs from the base .* encoder/encoder_norm/scale"):
        import_reference(request)


def test_without_torch_the_command_says_how_to_get_it(tmp_path, base, monkeypatch, capsys):
    (tmp_path / "lora.pt").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert (
        main(
            [
                "import",
                str(tmp_path / "lora.pt"),
                "--format",
                "reference",
                "--name",
                "x",
                "--base",
                str(base),
                "--library",
                str(tmp_path / "library"),
            ]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert 'pip install "pemt_jax[torch]"' in error and error.count("\n") == 1


class Hostile:
    """Makes a file when it is unpickled by a loader that trusts its input."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


@pytest.mark.parity
def test_files_that_torch_has_saved_are_imported_and_their_code_is_not_run(
    tmp_path, stage1, base, capsys
):
    torch = pytest.importorskip("torch", reason='needs torch: pip install "pemt_jax[torch]"')
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name, tensors in small(stage1).items():
        torch.save(
            {n: torch.tensor(t) for n, t in tensors.items()}, theirs / name.replace("_pt", ".pt")
        )
    arguments = [
        "import",
        str(theirs),
        "--format",
        "reference",
        "--base",
        str(base),
        "--library",
        str(tmp_path / "library"),
        "--name",
    ]
    assert main([*arguments, "mnli"]) == 0
    expert = library.load_expert(tmp_path / "library", "mnli")
    np.testing.assert_array_equal(expert.prompt, stage1["task_shared"])
    assert len(expert.lora) == 4
    torch.save({"task_shared": Hostile(tmp_path / "victim")}, theirs / "task_embedding.pt")
    capsys.readouterr()
    assert main([*arguments, "evil"]) == 1
    error = capsys.readouterr().err
    assert "nothing was executed" in error and error.count("\n") == 1
    assert not (tmp_path / "victim").exists()
    assert library.expert_names(tmp_path / "library") == ["mnli"]


@pytest.fixture
def adapter(tmp_path):
    """A PEFT adapter on one layer of a T5 of width 16."""
    rng = np.random.default_rng(0)
    module = "base_model.model.encoder.block.0.layer.1.DenseReluDense.wo"
    save_weights(
        tmp_path / "adapter" / "adapter_model.safetensors",
        {
            f"{module}.lora_A.weight": rng.normal(size=(2, 32)).astype(np.float32),
            f"{module}.lora_B.weight": rng.normal(size=(16, 2)).astype(np.float32),
        },
    )
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 4}'
    )
    return tmp_path / "adapter"


def test_the_prompt_of_an_adapter_starts_from_the_bases_vocabulary(tmp_path, adapter):
    base = random_base(tmp_path / "base")
    shutil.copy(Path(MINI_T5) / "spiece.model", base)
    import_peft(Request(tmp_path / "library", "mood", adapter, base=str(base), prompt=TEXT))
    expert = library.load_expert(tmp_path / "library", "mood")
    tokens = importing.open_vocabulary(base).encode(TEXT)
    embedding = load_hf(base)[1]["token_embedder/embedding"]
    np.testing.assert_array_equal(expert.prompt, embedding[[*tokens, 1]])  # and the end token
    assert expert.prompt_text == TEXT and list(expert.lora) == ["encoder/layers_0/mlp/wo"]


def test_a_vocabulary_that_is_not_the_bases_is_refused(tmp_path, adapter):
    base = random_base(
        tmp_path / "base",
        T5Config(**{**vars(CONFIG), "vocab_size": 8300, "emb_dim": 16, "mlp_dim": 32}),
    )
    with pytest.raises(UsageError, match="8100 entries .* 8300 embedding rows"):
        import_peft(
            Request(
                tmp_path / "library",
                "x",
                adapter,
                base=str(base),
                prompt=TEXT,
                vocabulary=str(Path(MINI_T5) / "spiece.model"),
            )
        )
    with pytest.raises(UsageError, match="no vocabulary .*nowhere"):
        import_peft(
            Request(
                tmp_path / "library",
                "x",
                adapter,
                base=str(base),
                prompt=TEXT,
                vocabulary="nowhere",
            )
        )
