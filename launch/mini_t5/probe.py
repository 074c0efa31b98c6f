"""What a linear classifier reads off a T5's encoder: `python launch/mini_t5/probe.py T5_FOLDER`.

Logistic regression on the mean over tokens of the encoder's output, of the demo's sentences. The
scores are areas under the ROC curve on validation rows; test rows are never read:

    movies, tweets, nyt   trained on the source's own training rows
    sources               on the target, trained on the three sources
    32_per_label          on the target, trained on 32 of its rows per label; mean of 10 draws
    target                on the target, trained on all of its training rows
"""

import json
import sys
from pathlib import Path

import numpy as np

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser

SOURCES, TARGET = ("movies", "tweets", "nyt"), "amazon"
SHOTS, DRAWS = 32, 10
EXAMPLES = 256  # per batch


def encoder_features(folder: Path):
    """Return a function from texts to features [n, D] of the T5 in a folder."""
    import jax
    from distillation import mean_output
    from flax import traverse_util
    from sentence_data import tokenized

    from pemt_jax.config import PemtConfig
    from pemt_jax.data.batching import eval_batches
    from pemt_jax.interop.base import load_base
    from pemt_jax.model.pemt_model import PemtModel
    from pemt_jax.tasks.vocabulary import beside, prefer

    prefer(beside(folder))
    t5, flat = load_base(folder)
    model, params = PemtModel(t5, PemtConfig()), traverse_util.unflatten_dict(flat, sep="/")
    encode = jax.jit(lambda params, batch: mean_output(model, params, batch))

    def features(texts: list[str]) -> np.ndarray:
        split = tokenized(texts, prefix="")  # the demo's inputs have it
        found = np.zeros((len(texts), t5.emb_dim), np.float32)
        for rows, batch in eval_batches(split, EXAMPLES, (24, 40, 64)):
            found[rows] = np.asarray(encode(params, batch))[: len(rows)]
        return found

    return features


def scores(features) -> dict[str, float]:
    """The areas under the curve, see the module."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from pemt_jax.tasks.demo import sentiment

    known: dict[str, np.ndarray] = {}

    def data(rows) -> tuple[np.ndarray, np.ndarray]:
        if new := [row for row in rows if row[0] not in known]:
            found = features([text for _, text, _ in new])
            known.update(zip((row[0] for row in new), found, strict=True))
        return np.stack([known[row[0]] for row in rows]), np.array([row[2] for row in rows])

    def area(train, judged: str) -> float:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=500))
        classifier.fit(*data(train))
        inputs, labels = data(sentiment.sentiment(judged, "validation"))
        return roc_auc_score(labels == "positive", classifier.decision_function(inputs))

    rows = {name: sentiment.sentiment(name, "train") for name in (*SOURCES, TARGET)}
    found = {name: area(rows[name], name) for name in SOURCES}
    found["sources"] = area([row for name in SOURCES for row in rows[name]], TARGET)
    draws = [sentiment.few_shot(TARGET, "train", SHOTS, seed) for seed in range(DRAWS)]
    found[f"{SHOTS}_per_label"] = float(np.mean([area(draw, TARGET) for draw in draws]))
    found["target"] = area(rows[TARGET], TARGET)
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = Parser(prog="probe.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="a T5, such as the base/ of distil.py")
    print(json.dumps(scores(encoder_features(parser.parse_args().folder))))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
