"""Predict with a finished run: text in, text out, one example per line.

    echo "sentence: It broke on the first day." | python -m pemt_jax.predict \\
        --gin.MODEL_DIR=runs/amazon

A line is what the task's inputs look like. An OUTPUT_FILE that ends in .jsonl gets one object per
line, with the log probability and, where experts are mixed, the gate over them.
"""

import contextlib
import dataclasses
import json
import os
import sys

import jax

from pemt_jax.cli import command
from pemt_jax.common import storage
from pemt_jax.common.configured import configured
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.writing.output import check_output, output
from pemt_jax.finished_config import PredictConfig
from pemt_jax.parallel import processes


@configured(PredictConfig)
def predict(config: PredictConfig) -> None:
    """Write a prediction for every line of the input."""
    from pemt_jax.runs.finished import open_run
    from pemt_jax.runs.predict import Predictor
    from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

    source, target = config.input_file, config.output_file
    if source and (not (place := storage.path(source)).exists() or place.is_dir()):
        state = f"{source} is a folder" if place.is_dir() else f"There is no file {source}"
        raise UsageError(f"{state}, expected lines of text as INPUT_FILE.")
    if jax.process_count() > 1 and not source:
        raise UsageError(
            f"Found {jax.process_count()} processes and no INPUT_FILE, expected one: they cannot "
            "share standard input."
        )
    if target:
        check_output("OUTPUT_FILE", target, [source] if source else [])
    predictor = Predictor(open_run(config.run, DEFAULT_VOCABULARY), config)
    as_json = bool(target) and target.endswith(".jsonl")
    with contextlib.ExitStack() as files:
        lines = sys.stdin
        if source:
            file = files.enter_context(storage.fetched(storage.path(source)))
            lines = files.enter_context(open(file, encoding="utf-8-sig"))
        out = sys.stdout
        if not processes.is_first():
            out = files.enter_context(open(os.devnull, "w", encoding="utf-8"))
        elif target:
            out = files.enter_context(output("OUTPUT_FILE", target, [source] if source else []))
        try:
            for found in predictor(line.rstrip("\n") for line in lines):
                text = found.prediction
                if as_json:
                    fields = dataclasses.asdict(found)
                    text = json.dumps({k: v for k, v in fields.items() if v != {}})
                print(text, file=out, flush=True)
        except UnicodeDecodeError as error:
            raise PemtError(
                f"{source or 'Standard input'} is not UTF-8 text ({error.reason}), expected lines "
                "of it."
            ) from error


if __name__ == "__main__":
    sys.exit(command.run(predict))
