"""A run of sentence distillation: its data, its checkpoints and the base that it leaves."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from distillation import make_loss_fn, starting_parameters
from sentence_data import (
    SentenceBatches,
    directions,
    held_out_batches,
    read_embeddings,
    read_texts,
    tokenized,
)

from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.common.hashing import fingerprint, write_checksums
from pemt_jax.common.storage import replacing_folder
from pemt_jax.common.versions import versions
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.data.batching import train_iterator
from pemt_jax.data.buckets import choose_buckets
from pemt_jax.interop.base import load_base
from pemt_jax.interop.hf import save_hf
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import Optimizer, Schedule
from pemt_jax.parallel.partitioning import make_mesh
from pemt_jax.run_config import LoopConfig
from pemt_jax.runs.model_dir import alone
from pemt_jax.runs.publish import BASE, check_base_replaceable
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, beside, prefer
from pemt_jax.training.evaluator import Evaluator
from pemt_jax.training.loop import SingleStepper, run_loop
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.run import Run, TrainResult
from pemt_jax.training.trainer import Trainer

SHAPES = 4  # lengths to pad to
EVAL_ROWS = 250  # per batch


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A run of distillation.

    Attributes:
      start: a Hugging Face T5 folder to start from.
      texts: the folder of make_sentences.py and embed.py.
      folder: of checkpoints/, metrics.jsonl and, at the end, base/, a Hugging Face T5 folder.
      steps, batch_size: updates, and sentences of each.
      learning_rate, warmup_steps, decay_steps: of `adamw_rms` with schedule "wsd".
      damping: factor of the start's sublayer outputs in the encoder; 1 for a start that has been
        distilled before.
      parts: parts of 10,000 sentences to train on; None for all that are embedded.
      every: steps between evaluations, which save.
      seed: of the order of the sentences.
    """

    start: Path
    texts: Path
    folder: Path
    steps: int
    batch_size: int = 64
    learning_rate: float = 0.01
    warmup_steps: int = 50
    decay_steps: int = 200
    damping: float = 0.2
    parts: int | None = None
    every: int = 500
    seed: int = 0

    @property
    def optimizer(self) -> Optimizer:
        schedule = Schedule(
            "wsd", self.learning_rate, self.warmup_steps, self.steps, self.decay_steps
        )
        return Optimizer("adamw_rms", schedule, b2=0.98)

    @property
    def base(self) -> Path:
        """The folder of the result."""
        return self.folder / BASE

    def run(self, only_export: bool = False) -> None:
        """Train from the newest checkpoint, if there is one, and write the base.

        Args:
          only_export: write the base of the best checkpoint so far and train no further.

        Raises:
          UsageError, PemtError: something does not fit or cannot be read.
          Stopped: SIGTERM or SIGINT came; the same call resumes the run.
        """
        check_base_replaceable(self.folder)
        prefer(beside(self.start))
        t5, flat = load_base(self.start)
        model, mesh = PemtModel(t5, PemtConfig()), make_mesh()
        loss_fn = make_loss_fn(model)
        source, held_out = self._open_data()
        evaluator = Evaluator(
            model.predict_batch, lambda p, b: loss_fn(p, b, None), DEFAULT_VOCABULARY, mesh
        )

        def validation(params) -> dict[str, float]:
            return {"cosine": evaluator.mean_metrics(params, held_out)["cosine"]}

        identity = {
            "start": fingerprint(flat),
            "sentences": source.splits[0].sha256,
            "vectors": fingerprint({"train": source.vectors}),
            "damping": self.damping,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "optimizer": self.optimizer.identity(),
        }
        trainable, frozen = starting_parameters(
            flat, self.damping, source.vectors.shape[1], self.seed
        )
        with (
            alone([self.folder]),
            Checkpoints(self.folder / "checkpoints", identity, "cosine") as kept,
            MetricsLog(self.folder) as log,
        ):
            trainer = Trainer(loss_fn, trainable, frozen, self.optimizer, self.seed, mesh)

            def publish(result: TrainResult) -> None:
                step, found, metrics = kept.restore_best(result.step, trainer.trainable_like)
                write_base(self.base, t5, {**frozen, **found})
                print(f"{self.base}: step {step}, held-out cosine {metrics['cosine']:.4f}")

            run = Run(
                trainer,
                self.steps,
                kept,
                log,
                validation=validation,
                best_metric="cosine",
                learning_rate=self.optimizer.learning_rate,
                publish=publish,
                versions=versions(),
            )
            if only_export:
                publish(run.result)
                return
            stepper = SingleStepper(
                trainer, lambda step: train_iterator(source, step, self.steps - step)
            )
            settings = LoopConfig(self.steps, self.seed, eval_every=self.every, log_every=50)
            run_loop(stepper, [run], settings, self.folder / "profile")

    def _open_data(self) -> tuple[SentenceBatches, list]:
        """Training batches by step, and the batches of the held-out sentences."""
        train, held_out = self.texts / "train.txt", self.texts / "held_out.txt"
        embeddings = read_embeddings(train, self.parts)
        mean = embeddings.mean(axis=0, keepdims=True, dtype=np.float32)
        split = tokenized(read_texts(train)[: len(embeddings)])
        buckets = choose_buckets(split.input_lengths, SHAPES, split.lengths["inputs"])
        vectors = directions(embeddings, mean)
        source = SentenceBatches(split, vectors, self.batch_size, self.seed, buckets)
        held_vectors = directions(read_embeddings(held_out), mean)
        held_split = tokenized(read_texts(held_out))
        return source, list(held_out_batches(held_split, held_vectors, EVAL_ROWS, buckets))


def write_base(folder: Path, t5: T5Config, params: Mapping[str, Any]) -> None:
    """Write or replace a base with its vocabulary; what is not T5's is left out."""
    with replacing_folder(folder) as partial:
        save_hf(partial, t5, {k: np.asarray(v) for k, v in params.items()}, "float32")
        DEFAULT_VOCABULARY.save(partial)
        write_checksums(partial)
