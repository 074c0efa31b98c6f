"""The demo's tasks: sentiment in three source domains, telling domains apart, a target domain.

    vader_movies  vader_tweets  vader_nyt     sources: negative or positive
    vader_domain                              a source unlike the target: movie, tweet, newspaper
    vader_sources                             mixture of the four, by their numbers of examples
    vader_amazon                              target, all training examples
    vader_amazon_8  _16  _32                  target, so many examples per label; _seed0 .. _seed4
    vader_movies_8_seed0 ...                  the four sources as targets, likewise
    vader_texts_pretrain                      span corruption of the sources' sentences
    vader_domain_pretrain                     telling domains apart, in pretraining's words
    vader_movies_pretrain ...                 the sources' questions, answered at random
    mini_t5_pretrain                          mixture: span corruption and these

Few-shot tasks share the validation and test splits of the whole task; the examples of 8 are among
those of 32 with the same seed, and names without a seed mean seed 0. Neutral sentences (an absolute
rating below 0.5) are left out of the sentiment tasks but not of vader_domain.

Pretraining sees the sentiment sources' sentences but none of their labels. A backbone that has seen
"negative" and "positive", or the human ratings, for the examples of stage 1 answers sentiment
itself: every expert reads the same feature, a bare adapter finds it with sixteen examples, and
there is nothing to transfer. The backbone must know all the same that such a question is answered
with one of two words, or an expert's small change never turns a mask's prediction into an answer:
so it sees the questions with one of the two answers drawn at random.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import seqio
import tensorflow as tf

from pemt_jax.tasks import metrics
from pemt_jax.tasks.demo import vader
from pemt_jax.tasks.descriptions import description, register_description
from pemt_jax.tasks.pretraining.corpus import SPAN_CORRUPTION, add_span_corruption
from pemt_jax.tasks.sources.tracked import TrackedSource
from pemt_jax.tasks.vocabulary import FEATURES

DOMAIN_NAMES = {"movies": "movie", "tweets": "tweet", "nyt": "newspaper"}  # one piece each
SENTIMENT = (*DOMAIN_NAMES, "amazon")
SHOTS = (8, 16, 32)
SEEDS = (0, 1, 2, 3, 4)
# Shares of the pretraining examples. T5 1.0 was pretrained on its supervised tasks too.
PRETRAINING_RATES = {
    SPAN_CORRUPTION: 0.80,
    "vader_texts_pretrain": 0.06,
    "vader_domain_pretrain": 0.06,
    "vader_movies_pretrain": 0.05,
    "vader_tweets_pretrain": 0.015,
    "vader_nyt_pretrain": 0.015,
}

Example = tuple[str, str, str]  # id, inputs, targets


def sentiment(domain: str, split: str) -> list[Example]:
    """The sentences of one split of a domain that are not neutral."""
    return [(row.id, f"sentence: {row.text}", row.label) for row in vader.split_rows(domain, split)]


def source_texts() -> list[str]:
    """The training sentences of the sources, neutral ones too, in the order of a hash."""
    rows = [row for name in DOMAIN_NAMES for row in vader.split_rows(name, "train", neutral=True)]
    return [row.text for row in sorted(rows, key=lambda row: vader.hash_order(row.id))]


def answered_at_random(name: str, split: str) -> list[Example]:
    """As `sentiment`, after the task's description and with a random answer."""
    answers = ("negative", "positive")
    return [
        (
            row_id,
            f"{description(f'vader_{name}')} {inputs}",
            answers[int(vader.hash_order(f"answer {row_id}"), 16) % 2],
        )
        for row_id, inputs, _ in sentiment(name, split)
    ]


def domain(split: str) -> list[Example]:
    """Which domain a text is from; as many examples of each as the smallest domain has."""
    rows = {name: vader.split_rows(name, split, neutral=True) for name in DOMAIN_NAMES}
    size = min(map(len, rows.values()))
    return [
        (row.id, f"text: {row.text}", DOMAIN_NAMES[name])
        for name in rows
        for row in rows[name][:size]
    ]


def few_shot(name: str, split: str, shots: int, seed: int) -> list[Example]:
    """As `sentiment`, or `domain`, with `shots` training examples per label, drawn by `seed`."""
    examples = domain(split) if name == "domain" else sentiment(name, split)
    if split != "train":
        return examples
    shuffled = sorted(examples, key=lambda row: vader.hash_order(f"few-shot {seed} {row[0]}"))
    return [
        row
        for label in sorted({row[2] for row in examples})
        for row in [row for row in shuffled if row[2] == label][:shots]
    ]


def add_task(
    name: str,
    examples: Callable[[str], list[Example]],
    splits: Sequence[str] = ("train", "validation", "test"),
    prefix: str = "",
) -> None:
    """Register a text-to-text task over a function from split to examples."""

    def dataset(split: str) -> tf.data.Dataset:
        ids, inputs, targets = zip(*examples(split), strict=True)
        columns: Any = {
            "id": list(ids),
            "inputs": [prefix + text for text in inputs],
            "targets": list(targets),
        }
        return tf.data.Dataset.from_tensor_slices(columns)

    # SeqIO's types want a number of examples where its own sources have None.
    source: Any = TrackedSource(dataset, lambda split: (prefix, examples(split)), splits=splits)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features=FEATURES,
        postprocess_fn=metrics.postprocess,
        metric_fns=[metrics.accuracy],
    )


for _name in SENTIMENT:
    add_task(f"vader_{_name}", functools.partial(sentiment, _name))
add_task("vader_domain", domain)

for _task, _shots, _seed in itertools.product((*SENTIMENT, "domain"), SHOTS, SEEDS):
    _names = [f"vader_{_task}_{_shots}_seed{_seed}"]
    if (_task, _seed) == ("amazon", 0):
        _names.append(f"vader_amazon_{_shots}")
    for _name in _names:
        add_task(_name, functools.partial(few_shot, _task, shots=_shots, seed=_seed))
        register_description(_name, description(f"vader_{_task}"))

add_task("vader_domain_pretrain", domain, splits=("train",), prefix="domain: ")
for _name in DOMAIN_NAMES:
    add_task(
        f"vader_{_name}_pretrain", functools.partial(answered_at_random, _name), splits=("train",)
    )


def source_text_dataset(split: str) -> tf.data.Dataset:
    """`source_texts` as `{"text": string}`; the only split is train."""
    del split
    columns: Any = {"text": source_texts()}
    return tf.data.Dataset.from_tensor_slices(columns)


add_span_corruption(
    "vader_texts_pretrain",
    TrackedSource(source_text_dataset, lambda split: source_texts(), splits=("train",)),
)


def _number_of_examples(task: seqio.Task) -> float:
    name = task.name.removeprefix("vader_")
    return float(len(domain("train") if name == "domain" else sentiment(name, "train")))


seqio.MixtureRegistry.add(
    "vader_sources",
    ["vader_movies", "vader_tweets", "vader_nyt", "vader_domain"],
    default_rate=_number_of_examples,
)
seqio.MixtureRegistry.add("mini_t5_pretrain", list(PRETRAINING_RATES.items()))
