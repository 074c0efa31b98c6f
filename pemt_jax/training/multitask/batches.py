"""One batch for many tasks: those of each task under a leading task axis, at one padded shape.

The shape of step n is that of the longest batch among the tasks that have not ended before it, a
function of n and of where tasks ended: a job that resumes with tasks at different steps pads each
step as it was padded before. Prompts of unequal lengths are padded on the left, which keeps their
distances to the text, and a feature of the batch says which rows of a prompt are real.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pemt_jax.data.batching import Batch, BatchSource

PROMPT_WEIGHTS = "encoder_prompt_weights"


def pad_batch(batch: Batch, inputs_length: int, targets_length: int) -> Batch:
    """The batch [B, ...] with columns of padding up to the given lengths."""
    padded = {}
    for name, values in batch.items():
        length = inputs_length if name.startswith("encoder") else targets_length
        padded[name] = np.pad(values, ((0, 0), (0, length - values.shape[1])))
    return padded


def prompt_weights(length: int, longest: int, batch_size: int) -> np.ndarray:
    """int32 [B, P]: 0 for the padding on the left of a prompt of `length` rows, 1 for its rows."""
    real = np.arange(longest) >= longest - length
    return np.repeat(real[None].astype(np.int32), batch_size, axis=0)


@dataclasses.dataclass(frozen=True)
class MultitaskSource:
    """Random access by step number to {feature: [slots, B, ...]}, as grain reads it.

    Args:
      sources: one per task, of one batch size.
      ends: the step at which each task ends, or has ended.
      slots: length of the task axis; slots after the last task stay empty.
      prompt_lengths: rows of each task's prompt.
      local_rows: of each task the rows that are read, in order; the others stay empty. Several
        processes then each read what is on their devices.
    """

    sources: Sequence[BatchSource]
    ends: Sequence[int]
    slots: int
    prompt_lengths: Sequence[int]
    local_rows: Sequence[np.ndarray]

    def __len__(self) -> int:
        return max(self.ends)

    def __getitem__(self, step: int) -> Batch:
        batches = {
            task: self._batch(task, step) for task, end in enumerate(self.ends) if step < end
        }
        longest = [
            max(batch[name].shape[1] for batch in batches.values())
            for name in ("encoder_input_tokens", "decoder_target_tokens")
        ]
        padded = {task: pad_batch(batch, *longest) for task, batch in batches.items()}
        like = next(iter(padded.values()))
        empty = {name: np.zeros_like(values) for name, values in like.items()}
        slots = [padded.get(task, empty) for task in range(self.slots)]
        stacked = {name: np.stack([slot[name] for slot in slots]) for name in like}
        if len(set(self.prompt_lengths)) > 1:
            rows, longest_prompt = self.sources[0].batch_size, max(self.prompt_lengths)
            lengths = [*self.prompt_lengths, *[longest_prompt] * self.slots][: self.slots]
            stacked[PROMPT_WEIGHTS] = np.stack(
                [prompt_weights(length, longest_prompt, rows) for length in lengths]
            )
        return stacked

    def _batch(self, task: int, step: int) -> Batch:
        source, rows = self.sources[task], self.local_rows[task]
        rows = rows[rows < source.batch_size]  # the mesh may have more, that only fill it
        whole = {}
        for name, values in source.batch(step, rows).items():
            whole[name] = np.zeros((source.batch_size, values.shape[1]), values.dtype)
            whole[name][rows] = values
        return whole
