"""Makes the sentencepiece vocabulary of a mini T5: `python -m pemt_jax.tasks.make_vocabulary`.

A unigram model with T5's conventions: ids 0 <pad>, 1 </s>, 2 <unk>, no <s>, NFKC normalisation,
no byte fallback. The 100 sentinels are added by SeqIO when the file is opened. It is trained on a
seeded sample of the paragraphs of a folder of text files and on the training text of the demo's
source tasks (never the target's), repeated so that the language of tweets gets its pieces.
"""

import argparse
import io
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from pemt_jax.common.errors import PemtError
from pemt_jax.tasks.demo import vader
from pemt_jax.tasks.pretraining.corpus import paragraphs, text_files

SOURCE_REPEATS = 4


def training_lines(corpus: str, sample: int, seed: int) -> Iterator[str]:
    """A seeded sample of about `sample` lines of at most 2,000 characters, then the sources."""
    lines = [
        piece
        for path in text_files(corpus)
        for paragraph in paragraphs(path)
        for piece in textwrap.wrap(paragraph, 2000, break_long_words=False)
    ]
    yield from random.Random(seed).sample(lines, min(sample, len(lines)))
    for domain in ("movies", "tweets", "nyt"):
        texts = [row.text for row in vader.split_rows(domain, "train", neutral=True)]
        yield from texts * SOURCE_REPEATS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", required=True, help="folder of *.txt and *.txt.xz files")
    parser.add_argument("--output", required=True, help="where to write spiece.model")
    parser.add_argument("--pieces", type=int, default=8000)
    parser.add_argument("--sample", type=int, default=300_000, help="paragraphs to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(args.corpus, args.sample, args.seed),
            model_writer=model,
            model_type="unigram",
            vocab_size=args.pieces,
            character_coverage=0.9995,
            normalization_rule_name="nmt_nfkc",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=args.threads,
            max_sentence_length=10_000,
            minloglevel=1,
        )
    except (PemtError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    Path(args.output).write_bytes(model.getvalue())
    print(f"{args.output}: {args.pieces} pieces")


if __name__ == "__main__":
    main()
