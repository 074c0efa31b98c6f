"""What a language model has to beat: tf-idf of words and pairs, and logistic regression.

`python launch/bag_of_words.py` prints its test accuracies for every draw of the few examples.
"""

import statistics

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from pemt_jax.cli.startup import startup

SOURCES = ("movies", "tweets", "nyt")


def accuracy(train: list, test: list) -> float:
    """Test accuracy of a classifier fitted on (id, text, label) rows."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000)
    )
    model.fit([text for _, text, _ in train], [label for _, _, label in train])
    return float(model.score([text for _, text, _ in test], [label for _, _, label in test]))


def scores(shots: int, seed: int) -> dict[str, float]:
    """Accuracy on the test split of vader_amazon from the few examples, and with all sources."""
    from pemt_jax.tasks.demo import sentiment as demo  # after a command has silenced TensorFlow

    few = demo.few_shot("amazon", "train", shots, seed)
    test = demo.sentiment("amazon", "test")
    pooled = [row for name in SOURCES for row in demo.sentiment(name, "train")]
    return {"few": accuracy(few, test), "sources_and_few": accuracy(pooled + few, test)}


def main() -> None:
    startup()  # keeps TensorFlow quiet
    from pemt_jax.tasks.demo.sentiment import SEEDS, SHOTS

    for shots in SHOTS:
        draws = [scores(shots, seed) for seed in SEEDS]
        for name in draws[0]:
            found = [draw[name] for draw in draws]
            mean, spread = statistics.mean(found), statistics.stdev(found)
            print(f"{shots} per label, {name}: {mean:.3f} +- {spread:.3f} over {len(found)} draws")


if __name__ == "__main__":
    main()
