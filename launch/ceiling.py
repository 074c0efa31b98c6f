"""What a weighted vote of the demo's experts can reach: `python launch/ceiling.py`.

Each packaged expert answers the target's training and validation sentences, test sentences are not
read. Logistic regression on the log odds of their answers is a weighted vote with the same weights
for every sentence (stacking, Wolpert 1992). PEMT mixes inside the layers, for which this is no
bound. The accuracy from all labels is that of 10-fold cross-validation; with few labels, of the
sentences that are left.
"""

import sys
from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.startup import startup

EXPERTS = ("vader_tweets", "vader_nyt", "vader_movies")
TARGET, SHOTS, DRAWS = "amazon", 32, 10
LABELS = ("negative", "positive")


def log_odds(answers) -> np.ndarray:
    """log p / (1 - p) of `positive` by a model's predictions; 0 for another answer."""
    found = []
    for answer in answers:
        p = min(np.exp(answer.log_probability), 1 - 1e-6)
        sign = {"negative": -1, "positive": 1}.get(answer.prediction, 0)
        found.append(sign * np.log(p / (1 - p)))
    return np.array(found)


def ceiling(
    odds: Mapping[str, np.ndarray], positive: np.ndarray, draws: list[np.ndarray]
) -> dict[str, float]:
    """Accuracies of each expert and of their weighted vote, and what the latter gains.

    Args:
      odds: log odds [N] of each expert.
      positive: the labels [N].
      draws: positions of the few labels of each draw.
    """
    votes = np.stack(list(odds.values()), axis=1)
    right = (votes > 0) == positive[:, None]
    alone = dict(zip(odds, right.mean(axis=0), strict=True))
    best = right[:, int(np.argmax(right.mean(axis=0)))]
    stacked = cross_val_predict(LogisticRegression(), votes, positive, cv=10) == positive
    gain = stacked.astype(float) - best
    few = []
    for drawn in draws:
        rest = np.setdiff1d(np.arange(len(positive)), drawn)
        classifier = LogisticRegression(C=0.1).fit(votes[drawn], positive[drawn])
        few.append(classifier.score(votes[rest], positive[rest]))
    return alone | {
        "weighted vote, all labels": stacked.mean(),
        "  above the best expert": gain.mean(),
        "  standard error of that": gain.std() / np.sqrt(len(gain)),
        f"weighted vote, {SHOTS} labels each": float(np.mean(few)),
        "  standard deviation over draws": float(np.std(few, ddof=1)),
        "an expert is right": right.any(axis=1).mean(),
    }


def main() -> None:
    startup()  # keeps TensorFlow quiet
    from experiment import PACKAGED

    import pemt_jax as pemt
    from pemt_jax.tasks.demo.sentiment import few_shot, sentiment

    rows = [row for split in ("train", "validation") for row in sentiment(TARGET, split)]
    place = {row[0]: i for i, row in enumerate(rows)}
    draws = [few_shot(TARGET, "train", SHOTS, seed) for seed in range(DRAWS)]
    odds = {
        name: log_odds(pemt.open_model(PACKAGED / name).predict([text for _, text, _ in rows]))
        for name in EXPERTS
    }
    positive = np.array([label == LABELS[1] for _, _, label in rows])
    print(f"{len(rows)} sentences of {TARGET}, {positive.mean():.3f} of them positive")
    drawn = [np.array([place[row[0]] for row in draw]) for draw in draws]
    for name, value in ceiling(odds, positive, drawn).items():
        print(f"{name:32} {value:.3f}")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
