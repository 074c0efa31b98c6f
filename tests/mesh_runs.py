"""Ten steps of both stages on any mesh of this process's devices; run as a script, many meshes.

    python mesh_runs.py FOLDER SHARDED STAGE,STAGE DATAxMODELxEXPERT ...

The shapes divide nothing: 6 rows, a prompt of 5, 2 experts of rank 4, heads that 4 does not divide.
FOLDER holds for each mesh and stage the losses (losses.json) and the checkpoint of the last step.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
from tiny_model import T5, initial_shapes, make_batch, random_params

from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.config import PemtConfig
from pemt_jax.model import methods
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import make_optimizer
from pemt_jax.parallel import partitioning
from pemt_jax.training.multitask.trainer import MultitaskTrainer
from pemt_jax.training.trainer import Trainer

STEPS = 10
SMALL = dataclasses.replace(T5, vocab_size=16, emb_dim=16, head_dim=4, mlp_dim=32, dropout_rate=0.1)
STAGES = {
    "pemt_source": PemtConfig(prompt_length=5, source_expert=True, expert_rank=4),
    "pemt_target": PemtConfig(
        prompt_length=5,
        source_prompt_lengths=(3, 5),
        expert_names=("nli", "qa"),
        expert_rank=4,
        adapter_dim=4,
    ),
}
STAGES |= {
    f"{stage}_qv": dataclasses.replace(pemt, expert_linears=("q", "v:2"))
    for stage, pemt in STAGES.items()
}


def make_trainer(stage: str, mesh, fully_sharded: bool = False) -> Trainer:
    pemt = STAGES[stage]
    trainable, frozen = methods.split(
        random_params(SMALL, pemt), methods.get_method(stage.removesuffix("_qv"))
    )
    return Trainer(
        PemtModel(SMALL, pemt).loss_fn,
        trainable,
        frozen,
        make_optimizer(schedule=0.01),
        mesh=mesh,
        params_axes=initial_shapes(SMALL, pemt)["params_axes"],
        fully_sharded=fully_sharded,
    )


def train(trainer: Trainer) -> list[float]:
    batches = [
        make_batch([3, 6, 1, 5, 4, 2], [3, 4, 1, 2, 3, 2], 6, 4, seed) for seed in range(STEPS)
    ]
    return [float(trainer.step(batch)["loss"].compute()) for batch in batches]


def run(folder: Path, name: str, mesh, stages, fully_sharded: bool = False) -> None:
    """Train the stages, save, and restore what stands beside: all to the same bits."""
    for stage in stages:
        trainer = make_trainer(stage, mesh, fully_sharded)
        losses = train(trainer)
        where = folder / stage / name
        with Checkpoints(where, {}) as kept:
            kept.save(STEPS, trainer.state)
        (where / "losses.json").write_text(json.dumps(losses))
        for other in sorted((folder / stage).iterdir()):
            with Checkpoints(other, {}) as kept:
                trainer.restore(kept, STEPS)  # every leaf is checked against its sha256
            shardings = jax.tree.map(lambda x: x.sharding, trainer.state)
            assert shardings == trainer.state_shardings, f"{name} restored {other.name} elsewhere"


def state(folder: Path, stage: str, name: str) -> dict[str, np.ndarray]:
    """The trainable parameters of a checkpoint, on one device."""
    trainer = make_trainer(stage, partitioning.make_mesh())
    with Checkpoints(folder / stage / name, {}) as kept:
        trainer.restore(kept, STEPS)
    return {path: np.asarray(value) for path, value in trainer.state.trainable.items()}


def frozen_bytes(stage: str, mesh, fully_sharded: bool, tasks: int = 1) -> dict[str, int]:
    """Bytes of each frozen parameter on the first device, in a run of one task or of many."""
    made = make_trainer(stage, mesh, fully_sharded)
    if tasks > 1:
        pemt, trainable = STAGES[stage], jax.device_get(made.state.trainable)
        made = MultitaskTrainer(
            PemtModel(SMALL, pemt).loss_fn,
            [trainable] * tasks,
            jax.device_get(made.frozen),
            make_optimizer(schedule=0.01),
            6,
            mesh=mesh,
            fully_sharded=fully_sharded,
            params_axes=initial_shapes(SMALL, pemt)["params_axes"],
        )
    frozen = made.frozen
    return {path: value.addressable_shards[0].data.nbytes for path, value in frozen.items()}


if __name__ == "__main__":
    for mesh_name in sys.argv[4:]:
        data, model, expert = map(int, mesh_name.split("x"))
        mesh = partitioning.make_mesh(data, model, expert)
        run(
            Path(sys.argv[1]),
            mesh_name,
            mesh,
            sys.argv[3].split(","),
            fully_sharded=sys.argv[2] == "True",
        )
