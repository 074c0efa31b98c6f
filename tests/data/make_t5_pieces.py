"""Make tests/data/t5_pieces.json: what T5's vocabulary has of the texts that the tests tokenise.

Run where a T5's tokenizer.json is:  python tests/data/make_t5_pieces.py TOKENIZER_JSON

A unigram model splits a text into pieces that occur in it, so that those pieces and the lowest
score of all, from which the score of unknown characters is made, give the tokens that the whole
vocabulary of 32,000 gives. They keep their ids.
"""

import json
import sys
from pathlib import Path

import sentencepiece

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from expected_examples import T5_TOKENS, t5_texts  # noqa: E402

from pemt_jax.tasks.tokenizer_json import SENTINEL, sentencepiece_file  # noqa: E402


def main() -> None:
    path = sys.argv[1]
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file(path)))
    pieces = json.loads(Path(path).read_text(encoding="utf-8"))["model"]["vocab"]
    pieces = [piece for piece in pieces if not piece[0].startswith(SENTINEL)]
    occur = set()
    for text in (text for name in T5_TOKENS for text in t5_texts(name)):
        text = model.Normalize(text)
        occur |= {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    kept = [
        [number, *piece] for number, piece in enumerate(pieces) if number < 3 or piece[0] in occur
    ]
    (HERE / "t5_pieces.json").write_text(
        json.dumps(
            {"size": len(pieces), "lowest": min(score for _, score in pieces[3:]), "pieces": kept},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
