"""Predict with a finished run: text in, text out, one example a line.

    echo "sentence: It broke on the first day." | python -m pemt_jax.predict \\
        --gin.MODEL_DIR=runs/amazon

A line is what the task's inputs look like.  An OUTPUT_FILE that ends in .jsonl gets an object a
line, with the log probability and, where experts are mixed, the gate over them.
"""

from pemt_jax.cli import command as cli  # isort: skip  (silences TensorFlow before it is imported)

import contextlib
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.storage import replacing
from pemt_jax.data.batching import DEFAULT_BUCKETS, bucket_of, make_batch
from pemt_jax.parallel import partitioning, processes
from pemt_jax.parallel.activation_constraints import constrained
from pemt_jax.runs.finished import open_run
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.evaluator import decode


def predict(
    model_dir: str,
    input_file: str | None = None,
    output_file: str | None = None,
    batch_size: int = 32,
    max_input_length: int | None = None,
    max_decode_length: int | None = None,
    num_beams: int = 1,
    initial_checkpoint_path: str | None = None,
    library: str | None = None,
    vocabulary: str | None = None,
    model_parallel: int = 1,
    expert_parallel: int = 1,
    fully_sharded: bool = False,
) -> None:
    """Write a prediction for every line of the input.

    Args:
      model_dir: a finished run.
      input_file, output_file: None for standard input and output.
      batch_size: lines decoded together.
      max_input_length: tokens kept of a line, the end token included; None for the run's.
      max_decode_length: most tokens to generate; None for the run's target length.
      num_beams: 1 for greedy search.
      initial_checkpoint_path, library: the base and the experts, if they were moved.
      vocabulary: a spiece.model; None for the one beside the base.
      model_parallel: devices over which the parameters are split; the rest split the batch.
      expert_parallel: devices over which the experts are split; see partitioning.py.
      fully_sharded: split the backbone's matrices over the data devices as well.
    """
    counts = {
        "batch_size": batch_size,
        "max_input_length": max_input_length,
        "max_decode_length": max_decode_length,
        "num_beams": num_beams,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}, expected 1 or more.")
    if input_file and not Path(input_file).is_file():
        raise UsageError(f"There is no file {input_file}, expected lines of text.")
    if jax.process_count() > 1 and not input_file:
        raise UsageError(
            f"Found {jax.process_count()} processes and no INPUT_FILE, expected one: "
            "they cannot share standard input."
        )
    made, card = open_run(
        model_dir, DEFAULT_VOCABULARY, initial_checkpoint_path, library, vocabulary
    )
    lengths = card.config["task_feature_lengths"] if card else {"inputs": 512, "targets": 64}
    length = max_decode_length or made.model.max_decode_length or lengths["targets"]
    max_input_length = max_input_length or lengths["inputs"]
    mesh = partitioning.make_mesh(model=model_parallel, expert=expert_parallel)
    params = made.placed(mesh, fully_sharded)
    local_rows = partitioning.local_rows(batch_size, mesh)
    processes.agree(base=made.identity["base"], run=made.identity, batch_size=batch_size)
    predict_batch = functools.partial(made.model.predict_batch_with_aux, num_decodes=num_beams)
    decode_batch = jax.jit(
        constrained(predict_batch, mesh, made.params_axes),
        out_shardings=NamedSharding(mesh, PartitionSpec()),  # every process reads all rows
    )

    def predictions(lines: Iterable[str]) -> Iterator[dict]:
        lines = iter(lines)
        while texts := list(itertools.islice(lines, batch_size)):
            pairs = [(encode(text, max_input_length), [1]) for text in texts]
            longest = max(len(tokens) for tokens, _ in pairs)
            pairs = [pairs[row] for row in local_rows if row < len(pairs)]
            batch = make_batch(
                pairs,
                len(local_rows),
                int(bucket_of(longest, DEFAULT_BUCKETS, max_input_length)),
                length,
            )
            tokens, aux = jax.device_get(
                decode_batch(params, partitioning.place_batch(batch, mesh))
            )
            for i, text in enumerate(texts):
                found = {
                    "input": text,
                    "prediction": decode(DEFAULT_VOCABULARY, tokens[i]),
                    "log_probability": float(aux["scores"][i]),
                }
                if "gate" in aux:
                    names = made.model.pemt.expert_names
                    found["gate"] = dict(zip(names, map(float, aux["gate"][i]), strict=True))
                yield found

    as_json = bool(output_file) and output_file.endswith(".jsonl")
    with contextlib.ExitStack() as files:
        lines = files.enter_context(open(input_file, encoding="utf-8")) if input_file else sys.stdin
        out = sys.stdout
        if not processes.is_first():
            out = files.enter_context(open(os.devnull, "w", encoding="utf-8"))
        elif output_file:
            partial = files.enter_context(replacing(Path(output_file)))
            out = files.enter_context(open(partial, "w", encoding="utf-8"))
        try:
            for found in predictions(line.rstrip("\n") for line in lines):
                print(json.dumps(found) if as_json else found["prediction"], file=out, flush=True)
        except UnicodeDecodeError as error:
            raise PemtError(
                f"{input_file or 'Standard input'} is not UTF-8 text ({error.reason}), "
                "expected lines of it."
            ) from error


def encode(text: str, limit: int) -> np.ndarray:
    """Tokens of a line, cut to the limit, the end token kept."""
    return np.array([*DEFAULT_VOCABULARY.encode(text)[: limit - 1], 1], np.int32)


if __name__ == "__main__":
    sys.exit(cli.run(predict))
