"""The steps of many tasks as the training loop sees them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pemt_jax.data.batching import BatchSource, train_iterator
from pemt_jax.training.multitask.batches import MultitaskSource
from pemt_jax.training.multitask.trainer import MultitaskTrainer
from pemt_jax.training.run import window_like
from pemt_jax.training.step import Batch


class MultitaskStepper:
    """Steps that update all active tasks; see training.loop.Stepper.

    Args:
        trainer: of all tasks.
        sources: of each task's batches.
        prompt_lengths: rows of each task's prompt.
    """

    def __init__(
        self,
        trainer: MultitaskTrainer,
        sources: Sequence[BatchSource],
        prompt_lengths: Sequence[int],
    ):
        self.trainer, self.sources, self.prompt_lengths = trainer, sources, prompt_lengths
        self.compiles, self.step = trainer.compiles, trainer.step

    def batches(self, step: int, ends: Sequence[int]) -> Iterator[Batch]:
        rows = [
            self.trainer.local_rows(slot, source.batch_size)
            for slot, source in enumerate(self.sources)
        ]
        source = MultitaskSource(self.sources, ends, self.trainer.slots, self.prompt_lengths, rows)
        return train_iterator(source, step, max(ends) - step)

    def examples(self, batch: Batch, step: int, run: int) -> int:
        return len(self.sources[run].plan(step))

    def part(self, window: dict, run: int) -> dict:
        return jax.tree.map(lambda x: x[run], jax.device_get(window))

    def with_parts(self, metrics: dict, parts: Mapping[int, Mapping], window: dict | None) -> dict:
        if window is None:
            found: Any = jax.tree.map(np.zeros_like, jax.device_get(metrics))
            found["first_bad_step"].step[:] = -1
        else:
            found = jax.tree.map(np.array, jax.device_get(window))  # copies, to be written to
        for slot, part in parts.items():
            own = window_like(part, metrics)
            jax.tree.map(lambda x, y, slot=slot: np.put(x, slot, y), found, own)
        return found
