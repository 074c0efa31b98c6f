"""The metrics of the paper, in percent, as SeqIO metric functions.

Each takes targets and predictions as `postprocess` makes them and returns its scores and their
`average`, the paper's one number per task: the accuracy, the mean of Pearson and Spearman, of F1
and exact match, and so on. F1 of MRPC, QQP and CB is reported beside accuracy but is not part of
the average, as in the authors' code. A prediction that is not a label of the task counts as wrong.
"""

import functools
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import numpy as np

from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

Scores = dict[str, float]
UNKNOWN = "\u2047"  # how sentencepiece writes an unknown token
LEFT_OUT = {*string.punctuation, UNKNOWN}


@gin.configurable
def gold_answers(every: bool = True) -> bool:
    """Whether SQuAD's metrics consider every answer to a question or, as the authors' code does,
    the first only."""
    return every


def postprocess(
    text: str, example: Mapping[str, object] | None = None, is_target: bool = False, **_
) -> object:
    """What the metrics compare.

    Predictions and targets become their stripped texts; the target of a question with several
    answers becomes the list of them, that of an example which belongs to a question the pair of
    question and text.
    """
    example = example or {}
    if is_target and "answers" in example:
        answers = np.asarray(example["answers"], object)
        return [answer.decode() for answer in answers.ravel()]
    if is_target and "group" in example:
        return text_of(example["group"]), text.strip()
    return text.strip()


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Scores:
    """Share of predictions that equal their targets."""
    from sklearn.metrics import accuracy_score

    score = 100 * float(accuracy_score(targets, predictions))
    return {"accuracy": score, "average": score}


def with_f1(positive: str) -> Callable[..., Scores]:
    """The metric of a task whose F1 is that of one class."""
    return functools.partial(accuracy_and_f1, positive=positive)


def accuracy_and_f1(targets: Sequence[str], predictions: Sequence[str], *, positive: str) -> Scores:
    """Accuracy, and F1 of the class `positive` beside it; see `with_f1`."""
    f1 = _f1(np.array(targets) == positive, np.array(predictions) == positive, zero_division=0.0)
    return {**accuracy(targets, predictions), "f1": f1}


def with_macro_f1(words: Sequence[str]) -> Callable[..., Scores]:
    """The metric of a task whose F1 is the mean over classes."""
    return functools.partial(accuracy_and_macro_f1, words=tuple(words))


def accuracy_and_macro_f1(
    targets: Sequence[str], predictions: Sequence[str], *, words: Sequence[str]
) -> Scores:
    """Accuracy, and the mean F1 of the classes `words` that occur; see `with_macro_f1`."""
    # nan leaves classes out of the mean that occur in neither targets nor predictions.
    f1 = _f1(targets, predictions, labels=list(words), average="macro", zero_division=np.nan)
    return {**accuracy(targets, predictions), "f1": f1}


def matthews(targets: Sequence[str], predictions: Sequence[str]) -> Scores:
    """Matthews correlation; predictions that are not labels count as further classes."""
    from sklearn.metrics import matthews_corrcoef

    score = 100 * float(matthews_corrcoef(targets, predictions))
    return {"matthews_correlation": score, "average": score}


def correlations(targets: Sequence[str], predictions: Sequence[str]) -> Scores:
    """Pearson and Spearman; a prediction that is not a number is -1, an undefined correlation 0."""
    from scipy import stats

    wanted, found = ([_number(text) for text in texts] for texts in (targets, predictions))
    scores = {"pearson": 0.0, "spearmanr": 0.0}
    if len(set(wanted)) > 1 and len(set(found)) > 1:
        for name, correlation in ("pearson", stats.pearsonr), ("spearmanr", stats.spearmanr):
            result: Any = correlation(wanted, found)
            scores[name] = 100 * float(result.statistic)
    return {**scores, "average": float(np.mean(list(scores.values())))}


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> Scores:
    """Exact match and token F1 after SQuAD's normalisation, each the best over the answers.

    Both sides are compared as the vocabulary writes them, as in the authors' code: a model can only
    answer with its tokens, and some answers have characters without one.
    """
    golds = [golds if gold_answers() else golds[:1] for golds in targets]
    return _best_answers(
        [[_as_decoded(gold) for gold in every] for every in golds],
        [_as_decoded(text) for text in predictions],
    )


def _as_decoded(text: str) -> str:
    """A text after tokenisation; what is unknown to the vocabulary is UNKNOWN."""
    return DEFAULT_VOCABULARY.decode(DEFAULT_VOCABULARY.encode(text))


def record(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> Scores:
    """As `squad`, always over all answers, which are not tokenised; each question counts once."""
    return _best_answers(targets, predictions)


def multirc(targets: Sequence[tuple[str, str]], predictions: Sequence[str]) -> Scores:
    """F1 of the right answers over all examples; share of questions with every example right."""
    wanted = [text == "True" for _, text in targets]
    # A prediction that is neither True nor False is wrong: the opposite of its target.
    found = [
        prediction == "True" if prediction in ("True", "False") else not right
        for prediction, right in zip(predictions, wanted, strict=True)
    ]
    questions: dict[str, list[bool]] = defaultdict(list)
    for (question, _), a, b in zip(targets, wanted, found, strict=True):
        questions[question].append(a == b)
    scores = {
        "f1": _f1(wanted, found, zero_division=0.0),
        "em": 100 * float(np.mean([all(rows) for rows in questions.values()])),
    }
    return {**scores, "average": float(np.mean(list(scores.values())))}


def normalized(text: str) -> str:
    """SQuAD's normalisation: lower case without punctuation, articles and extra spaces.

    Unknown tokens go too, which the authors' code does not decode.
    """
    text = "".join(character for character in text.lower() if character not in LEFT_OUT)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(answer: str, prediction: str) -> float:
    """F1 of the words that two texts share, from 0 to 1, after normalisation."""
    wanted, found = normalized(answer).split(), normalized(prediction).split()
    if wanted == found:  # also two texts without a word, which the authors' code scores 0
        return 1.0
    shared = sum((Counter(wanted) & Counter(found)).values())
    return 2 * shared / (len(wanted) + len(found))


def _best_answers(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> Scores:
    pairs = list(zip(targets, predictions, strict=True))
    em = [max(normalized(gold) == normalized(text) for gold in golds) for golds, text in pairs]
    f1 = [max(token_f1(gold, text) for gold in golds) for golds, text in pairs]
    scores = {"em": 100 * float(np.mean(em)), "f1": 100 * float(np.mean(f1))}
    return {**scores, "average": float(np.mean(list(scores.values())))}


def _f1(targets: Sequence, predictions: Sequence, **options: Any) -> float:
    from sklearn.metrics import f1_score

    return 100 * float(f1_score(targets, predictions, **options))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if np.isfinite(value) else -1.0


def text_of(value: object) -> str:
    """A text that may be a scalar of NumPy or bytes."""
    value = value.item() if isinstance(value, np.ndarray | np.bytes_) else value
    return value.decode() if isinstance(value, bytes) else str(value)
