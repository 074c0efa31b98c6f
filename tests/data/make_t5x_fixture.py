"""Make tests/data/t5x_*.tar.gz: random T5s in T5X checkpoints, by T5X, and the logits it gives.

Run once, where T5X is installed (README).  The tests need it not.  Each archive has checkpoint_4 in
the legacy form or that of orbax, with optimizer state; t5x_1_*.npz the batch and the logits.
"""

import sys
import tarfile
import tempfile
from pathlib import Path

import jax
import numpy as np
import seqio
from t5x import adafactor, checkpoints, models, partitioning, utils
from t5x.examples.t5 import network

HERE = Path(__file__).parent
B, S, T = 2, 140, 9  # longer than the largest distance that has a bucket of its own


def model_of(**kind) -> models.EncoderDecoderModel:
    config = network.T5Config(
        vocab_size=48,
        emb_dim=10,
        num_heads=2,
        head_dim=3,
        mlp_dim=14,
        num_encoder_layers=2,
        num_decoder_layers=1,
        **kind,
    )
    vocabulary = seqio.PassThroughVocabulary(48)
    return models.EncoderDecoderModel(
        network.Transformer(config), vocabulary, vocabulary, adafactor.Adafactor(0.1)
    )


def train_state_of(model, seed: int):
    """A train state whose numbers are all random, those of the norms and the optimizer too."""
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    shapes = {
        "encoder_input_tokens": (B, S),
        "decoder_input_tokens": (B, T),
        "decoder_target_tokens": (B, T),
        "decoder_loss_weights": (B, T),
    }
    initializer = utils.TrainStateInitializer(
        model.optimizer_def, model.get_initial_variables, shapes, partitioner
    )
    state = initializer.from_scratch(jax.random.key(seed))
    random = np.random.default_rng(seed)

    def value(array):
        values = random.normal(size=array.shape)
        values = values / np.sqrt(array.shape[0]) if array.ndim > 1 else 1 + 0.1 * values
        return jax.numpy.asarray(values, array.dtype)

    params = jax.tree.map(value, state.params)
    return state.replace_params(params).replace_step(jax.numpy.int32(4)), partitioner


def save(name: str, state, partitioner, dtype=None) -> None:
    for form in ("legacy", "orbax"):
        with tempfile.TemporaryDirectory() as folder:
            if form == "legacy":
                checkpoints.Checkpointer(state, partitioner, folder, save_dtype=dtype).save(state)
            else:
                manager = checkpoints.OrbaxCheckpointManagerInterface(
                    folder, state, partitioner, save_dtype=dtype
                )
                manager.save(state)
                manager.close()
            with tarfile.open(HERE / f"{name}_{form}.tar.gz", "w:gz") as archive:
                archive.add(
                    Path(folder, "checkpoint_4"),
                    "checkpoint_4",
                    filter=lambda file: None if file.name.endswith("commit_success.txt") else file,
                )  # names a folder


def make(name: str, seed: int, dtype=None, **kind) -> None:
    model = model_of(**kind)
    state, partitioner = train_state_of(model, seed)
    random = np.random.default_rng(seed)
    inputs, targets = random.integers(2, 48, (B, S)), random.integers(2, 48, (B, T))
    inputs[1, 20:], targets[1, 4:] = 0, 0
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    logits = model.module.apply(
        {"params": state.params}, inputs, shifted, targets, enable_dropout=False
    )
    np.savez_compressed(
        HERE / f"{name}.npz", inputs=inputs, targets=targets, logits=np.asarray(logits, np.float32)
    )
    save(name, state, partitioner, dtype)


if __name__ == "__main__":
    sys.argv = sys.argv[:1]
    make("t5x_1_0", 0, mlp_activations=("relu",), logits_via_embedding=True)
    make("t5x_1_1", 1, mlp_activations=("gelu", "linear"), logits_via_embedding=False)
