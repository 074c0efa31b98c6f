"""Writes the T5 that distillation starts from: random layers under the teacher's word vectors.

The embedding of each piece of the vocabulary is the teacher's embedding of its text, projected to
the model's width by principal components, half-whitened (divided by the root of each component's
standard deviation, so that the first few do not drown the others), and scaled to a root mean square
of 1, that of T5's initial embedding. Control pieces and sentinels are drawn from N(0, 1).
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser
from pemt_jax.common.errors import UsageError
from pemt_jax.common.storage import check_free

CONTROLS = 3  # <pad>, </s>, <unk>


def piece_vectors(embeddings: np.ndarray, width: int) -> np.ndarray:
    """The teacher's embeddings [pieces, 384] as word vectors [pieces, width], see the module."""
    from sklearn.decomposition import PCA

    projected = PCA(width, svd_solver="full").fit_transform(embeddings.astype(np.float64))
    projected /= np.sqrt(projected.std(axis=0, keepdims=True))
    return (projected / np.sqrt(np.mean(projected**2))).astype(np.float32)


def make(folder: Path, texts: Path, seed: int, **shape: Any) -> None:
    """Write the model; `shape` is fields of T5Config."""
    from distillation_run import write_base
    from sentence_data import read_embeddings

    from pemt_jax.config import PemtConfig, T5Config
    from pemt_jax.model.pemt_model import PemtModel
    from pemt_jax.runs.initialization import initial_parameters
    from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

    check_free(folder)
    pieces = read_embeddings(texts / "pieces.txt")
    if shape["emb_dim"] > pieces.shape[1]:
        raise UsageError(
            f"Found --emb_dim {shape['emb_dim']}, expected at most the teacher's {pieces.shape[1]}."
        )
    t5 = T5Config(vocab_size=DEFAULT_VOCABULARY.vocab_size, dropout_rate=0.0, **shape)
    embedding = np.random.default_rng(seed).normal(size=(t5.vocab_size, t5.emb_dim))
    embedding[CONTROLS : len(pieces)] = piece_vectors(pieces[CONTROLS:], t5.emb_dim)
    given = {"token_embedder/embedding": embedding.astype(np.float32)}
    params, _ = initial_parameters(PemtModel(t5, PemtConfig()), seed, given)
    write_base(folder, t5, params)
    print(f"{folder}: {sum(value.size for value in params.values()):,} parameters")


def main() -> None:
    parser = Parser(prog="make_start.py", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="a new folder")
    add("--texts", type=Path, required=True, help="the folder of make_sentences.py and embed.py")
    add("--emb_dim", type=int, default=256)
    add("--num_heads", type=int, default=4)
    add("--head_dim", type=int, default=64)
    add("--mlp_dim", type=int, default=1024)
    add("--num_encoder_layers", type=int, default=4)
    add("--num_decoder_layers", type=int, default=2)
    add("--seed", type=int, default=11)
    make(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
