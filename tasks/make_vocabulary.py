"""Makes the sentencepiece vocabulary of a mini T5: `python -m pemt_jax.tasks.make_vocabulary`.

A unigram model with T5's conventions: ids 0 <pad>, 1 </s>, 2 <unk>, no <s>, NFKC normalisation,
no byte fallback. The 100 sentinels are added by SeqIO when the file is opened. It is trained on a
seeded sample of the paragraphs of a folder of text files and on the training text of the demo's
source tasks (never the target's), repeated so that the language of tweets gets its pieces.
"""

import argparse
import io
import random
import sys
import textwrap
from collections.abc import Iterator, Sequence

import sentencepiece

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.flat_config import at_least
from pemt_jax.common.storage import path, replacing
from pemt_jax.common.user_input.paragraphs import paragraphs, text_files
from pemt_jax.common.writing.output import check_output
from pemt_jax.tasks.demo import vader

SOURCE_REPEATS = 4


def training_lines(corpus: str, sample: int, seed: int) -> Iterator[str]:
    """A seeded sample of about `sample` lines of up to 2,000 characters, then the demo's texts."""
    lines = [
        piece
        for file in text_files(corpus)
        for paragraph in paragraphs(file)
        for piece in textwrap.wrap(paragraph, 2000, break_long_words=False)
    ]
    yield from random.Random(seed).sample(lines, min(sample, len(lines)))
    for domain in ("movies", "tweets", "nyt"):
        texts = [row.text for row in vader.split_rows(domain, "train", neutral=True)]
        yield from texts * SOURCE_REPEATS


def main(argv: Sequence[str] | None = None) -> int:
    """Make a vocabulary; return the exit code: 0, 1 for a failure, 2 for wrong use."""
    return exit_code_of(lambda: _make(_parser().parse_args(argv)))


def _parser() -> Parser:
    parser = Parser(prog="python -m pemt_jax.tasks.make_vocabulary", description=__doc__)
    add = parser.add_argument
    add("--corpus", required=True, help="folder of *.txt and *.txt.xz files")
    add("--output", required=True, help="where to write spiece.model")
    add("--pieces", type=int, default=8000)
    add("--sample", type=int, default=300_000, help="paragraphs to learn from")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2)
    return parser


def _make(given: argparse.Namespace) -> None:
    counts = {"--pieces": given.pieces, "--sample": given.sample, "--threads": given.threads}
    at_least(1, **counts)
    check_output("--output", given.output)
    if (place := path(given.output)).exists() and not place.is_file():
        kind = "a folder" if place.is_dir() else "a pipe or device"
        raise UsageError(f"--output {given.output} is {kind}, expected a file to write.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(given.corpus, given.sample, given.seed),
            model_writer=model,
            model_type="unigram",
            vocab_size=given.pieces,
            character_coverage=0.9995,
            normalization_rule_name="nmt_nfkc",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=given.threads,
            max_sentence_length=10_000,
            minloglevel=1,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0].strip()
        raise PemtError(f"sentencepiece cannot make {given.pieces} pieces ({reason}).") from error
    with replacing(given.output) as partial:
        partial.write_bytes(model.getvalue())
    print(f"{given.output}: {given.pieces} pieces")


if __name__ == "__main__":
    sys.exit(main())
