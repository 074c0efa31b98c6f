"""Hand-computed scores of right, wrong and unparsable predictions."""

import warnings

import gin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pemt_jax.tasks import metrics
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    gin.clear_config()


def test_accuracy_is_in_percent():
    assert metrics.accuracy(["a", "b", "a", "b"], ["a", "b", "b", ""]) == {
        "accuracy": 50.0,
        "average": 50.0,
    }


def test_f1_stands_beside_accuracy_and_out_of_the_average():
    # Of three duplicates two are found, and one is claimed wrongly: 2 * 2 / (3 + 3).
    found = metrics.with_f1("yes")(
        ["yes", "yes", "yes", "no", "no"], ["yes", "yes", "maybe", "yes", "no"]
    )
    assert found == pytest.approx({"accuracy": 60.0, "f1": 200 / 3, "average": 60.0})


def test_macro_f1_is_the_mean_over_the_classes_that_occur():
    words = ("entailment", "contradiction", "neutral")
    # entailment: precision 1/2, recall 1; contradiction: precision 1, recall 1/2; no neutral.
    found = metrics.with_macro_f1(words)(
        ["entailment", "contradiction", "contradiction"],
        ["entailment", "contradiction", "entailment"],
    )
    assert found == pytest.approx({"accuracy": 200 / 3, "f1": 200 / 3, "average": 200 / 3})
    found = metrics.with_macro_f1(words)(["entailment", "neutral"], ["entailment", "42"])
    assert found == pytest.approx({"accuracy": 50.0, "f1": 50.0, "average": 50.0})


def test_matthews_correlation():
    # tp 2, tn 1, fp 1, fn 0: (2 * 1 - 0) / sqrt(3 * 2 * 2 * 1)
    found = metrics.matthews(["a", "a", "u", "u"], ["a", "a", "a", "u"])
    assert found["matthews_correlation"] == pytest.approx(100 * 2 / 12**0.5)
    assert metrics.matthews(["a", "u"], ["u", "a"])["average"] == -100.0
    assert metrics.matthews(["a", "u"], ["a", "a"])["average"] == 0.0
    assert metrics.matthews(["a", "u"], ["", ""])["average"] == 0.0


def test_correlations_read_numbers_and_take_minus_one_for_the_rest():
    found = metrics.correlations(["1.0", "2.0", "3.0"], ["1.0", "2.0", "4.0"])
    # Pearson of (1, 2, 3) and (1, 2, 4): 3 / sqrt(2 * 14 / 3)
    assert found["pearson"] == pytest.approx(100 * 3 / (28 / 3) ** 0.5)
    assert found["spearmanr"] == pytest.approx(100)
    assert found["average"] == pytest.approx((found["pearson"] + 100) / 2)
    with_a_fault = metrics.correlations(["1.0", "2.0", "3.0"], ["1.0", "two", "3.0"])
    assert with_a_fault == metrics.correlations(["1.0", "2.0", "3.0"], ["1.0", "-1", "3.0"])
    assert metrics.correlations(["1.0", "2.0"], ["nan", "inf"])["average"] == 0.0
    assert metrics.correlations(["1.0"], ["1.0"])["average"] == 0.0


def test_squad_takes_the_best_of_all_answers():
    found = metrics.squad([["the U . S .", "America"], ["5 %"]], ["america !", "about 5"])
    # The second has no exact match; one of two words right of one wanted: 2 * 1 / (1 + 2).
    assert found == pytest.approx(
        {"em": 50.0, "f1": (100 + 200 / 3) / 2, "average": (50 + (100 + 200 / 3) / 2) / 2}
    )


def test_squad_can_look_at_the_first_answer_only():
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks import metrics\n"
        "metrics.gold_answers.every = False\n"
    )
    assert metrics.squad([["the U.S.", "America"]], ["america"])["em"] == 0.0
    assert metrics.record([["the U.S.", "America"]], ["america"])["em"] == 100.0


def test_answers_with_characters_that_the_vocabulary_lacks_can_be_right():
    golds = ["\u4e2d {x} na\u00efve", "\u00bd cup"]
    predictions = [DEFAULT_VOCABULARY.decode(DEFAULT_VOCABULARY.encode(gold)) for gold in golds]
    assert all(text != gold for text, gold in zip(predictions, golds, strict=True))
    perfect = {"em": 100.0, "f1": 100.0, "average": 100.0}
    assert metrics.squad([[gold] for gold in golds], predictions) == perfect
    # The unknown token itself is nothing that could be right or wrong.
    assert metrics.squad([["\u4e2d x"]], ["x"]) == perfect
    assert metrics.squad([["\u4e2d x"]], ["y"])["em"] == 0.0


def test_normalisation_is_squads():
    assert metrics.normalized("  The Cat's (a) an  APPLE, theatre ") == "cats apple theatre"
    assert metrics.token_f1("a cat sat", "cat sat sat down") == pytest.approx(2 * 2 / (2 + 4))
    assert metrics.token_f1("the", "a") == 1.0
    assert metrics.token_f1("x", "") == 0.0


def test_multirc_counts_answers_and_whole_questions():
    targets = [("0/0", "True"), ("0/0", "False"), ("0/1", "True"), ("0/1", "True")]
    found = metrics.multirc(targets, ["True", "False", "True", "perhaps"])
    # Two of three true answers found, none claimed wrongly; one of two questions all right.
    assert found == pytest.approx({"f1": 80.0, "em": 50.0, "average": 65.0})
    # What cannot be read is the opposite of a false answer too.
    assert metrics.multirc([("a", "False"), ("a", "True")], ["", "True"]) == pytest.approx(
        {"f1": 200 / 3, "em": 0.0, "average": 100 / 3}
    )


def test_postprocessing_knows_answers_and_questions():
    assert metrics.postprocess(" yes ") == "yes"
    example = {"answers": np.array([b"a", "\u00e9".encode()], object)}
    assert metrics.postprocess("a", example=example, is_target=True) == ["a", "\u00e9"]
    assert metrics.postprocess(" a ", example=example, is_target=False) == "a"
    assert metrics.postprocess("True", example={"group": b"1/2"}, is_target=True) == ("1/2", "True")
    assert metrics.postprocess(
        "True", example={"group": np.array(b"1/2", object)}, is_target=True
    ) == ("1/2", "True")


@given(st.lists(st.sampled_from(["True", "False"]), min_size=1), st.data())
def test_scores_are_percentages(targets, draw):
    predictions = draw.draw(
        st.lists(
            st.sampled_from(["True", "False", "x"]), min_size=len(targets), max_size=len(targets)
        )
    )
    for found in (
        metrics.accuracy(targets, predictions),
        metrics.with_f1("True")(targets, predictions),
        metrics.multirc([("q", text) for text in targets], predictions),
    ):
        assert all(0.0 <= value <= 100.0 for value in found.values())
