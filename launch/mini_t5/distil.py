"""Distils the encoder of a T5 from the embeddings of embed.py; see distillation.py

The same command resumes a run that was stopped, to the same bits. A run may be given more --steps
until its decay begins. The result is FOLDER/base, which is a base for `pemt_jax.train`.
"""

import sys
from pathlib import Path

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser


def main() -> None:
    parser = Parser(prog="distil.py", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="of checkpoints, log and result")
    add("--start", type=Path, required=True, help="a Hugging Face T5 folder, as of make_start.py")
    add("--texts", type=Path, required=True, help="the folder of make_sentences.py and embed.py")
    add("--steps", type=int, required=True, help="updates")
    add("--batch_size", type=int, default=64, help="sentences per update")
    add("--learning_rate", type=float, default=0.01)
    add("--warmup_steps", type=int, default=50)
    add("--decay_steps", type=int, help="at the end; default: a fifth of the steps")
    add("--damping", type=float, default=0.2, help="of the start's sublayers; 1: as they are")
    add("--parts", type=int, help="parts of 10,000 sentences; default: all that are embedded")
    add("--every", type=int, default=500, help="steps between evaluations and checkpoints")
    add("--seed", type=int, default=0)
    add("--export", action="store_true", help="write FOLDER/base of the best checkpoint, and end")
    given = vars(parser.parse_args())
    from distillation_run import Distillation  # brings TensorFlow, which a command silences first

    export = given.pop("export")
    if given["decay_steps"] is None:
        given["decay_steps"] = max(given["steps"] // 5, 1)
    Distillation(**given).run(only_export=export)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
