"""Predictions of a finished run: text in, text out, with scores and gates."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pemt_jax.common.errors import UsageError
from pemt_jax.data.batching import bucket_of, make_batch
from pemt_jax.finished_config import PredictConfig
from pemt_jax.parallel import partitioning, processes
from pemt_jax.parallel.activation_constraints import constrained
from pemt_jax.parallel.capacity import check_batch
from pemt_jax.run_config import DEFAULT_BUCKETS
from pemt_jax.runs.finished import FinishedRun
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.evaluator import decode


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A prediction.

    Attributes:
      input: the line.
      prediction: the decoded text.
      log_probability: of its tokens, in nats; of a beam divided by the length penalty.
      gate: weight of each expert, mean over the gates of the encoder and decoder, whose mean over
        examples `evaluate` reports as `gate/NAME`; empty without experts.
    """

    input: str
    prediction: str
    log_probability: float
    gate: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Predictor:
    """Predicts with a finished run; one compilation per input length.

    Args:
      run: the run.
      config: batch size, lengths, beams and mesh.

    Raises:
      UsageError: the run does not know its lengths and the configuration does not name them.
    """

    def __init__(self, run: FinishedRun, config: PredictConfig):
        built, lengths = run.built, run.lengths or {}
        inputs = config.max_input_length or lengths.get("inputs")
        targets = (
            config.max_decode_length or built.model.max_decode_length or lengths.get("targets")
        )
        if not (inputs and targets):
            raise UsageError(
                f"{run.folder} does not say how long its inputs and targets were, expected "
                "MAX_INPUT_LENGTH and MAX_DECODE_LENGTH."
            )
        self._input_length, self._length = inputs, targets
        rows, beams = config.batch_size, config.num_beams
        what = f"BATCH_SIZE {rows} with NUM_BEAMS {beams} and MAX_DECODE_LENGTH {targets}"
        check_batch(what, rows * beams, targets, built.model.t5.emb_dim)
        self._names, self._batch_size = built.model.pemt.expert_names, config.batch_size
        self._mesh = partitioning.make_mesh(
            model=config.mesh.model_parallel, expert=config.mesh.expert_parallel
        )
        self._params = built.placed(self._mesh, config.mesh.fully_sharded)
        self._local_rows = partitioning.local_rows(config.batch_size, self._mesh)
        processes.agree(
            base=built.identity["base"], run=built.identity, batch_size=config.batch_size
        )
        predict = functools.partial(
            built.model.predict_batch_with_aux, num_decodes=config.num_beams
        )
        self._decode = jax.jit(
            constrained(predict, self._mesh, built.params_axes),
            out_shardings=NamedSharding(self._mesh, PartitionSpec()),  # all processes read all
        )

    def __call__(self, lines: Iterable[str]) -> Iterator[Prediction]:
        """Yield a prediction for each line, in order."""
        lines = iter(lines)
        while texts := list(itertools.islice(lines, self._batch_size)):
            pairs = [(encode(text, self._input_length), np.array([1])) for text in texts]
            longest = max(len(tokens) for tokens, _ in pairs)
            pairs = [pairs[row] for row in self._local_rows if row < len(pairs)]
            bucket = int(bucket_of(longest, DEFAULT_BUCKETS, self._input_length))
            batch = make_batch(pairs, len(self._local_rows), bucket, self._length)
            placed = partitioning.place_batch(batch, self._mesh)
            tokens, aux = jax.device_get(self._decode(self._params, placed))
            for i, text in enumerate(texts):
                gate = map(float, aux["gate"][i]) if "gate" in aux else ()
                yield Prediction(
                    text,
                    decode(DEFAULT_VOCABULARY, tokens[i]),
                    float(aux["scores"][i]),
                    dict(zip(self._names, gate, strict=True)) if "gate" in aux else {},
                )


def encode(text: str, limit: int) -> np.ndarray:
    """Tokens of a line, cut to the limit, the end token kept."""
    return np.array([*DEFAULT_VOCABULARY.encode(text)[: limit - 1], 1], np.int32)
