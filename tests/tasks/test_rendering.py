"""Text work on single rows, with the characters that break it."""

import gin
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from pemt_jax.common.errors import PemtError
from pemt_jax.tasks import rendering
from pemt_jax.tasks.targets import Answers, Label, Number, Option


def text(value):
    return value.numpy().decode()


def test_templates_take_any_text():
    row = {"a": tf.constant("{b} \\1 %s"), "b": tf.constant("")}
    assert text(rendering.fill("x: {a} y: {b}", row)) == "x: {b} \\1 %s y: "


def test_punctuation_is_set_apart():
    def padded(value):
        return text(rendering.pad_punctuation(tf.constant(value)))

    assert padded("What's 5%?") == "What ' s 5 % ?"
    assert padded("snake_case U.S.") == "snake_case U . S ."
    assert padded("\u00ef e\u0301 \u0663 \u4e2d\u3002") == "\u00ef e\u0301 \u0663 \u4e2d \u3002"
    assert padded("a\u00a0b\u2003c\x0bd\x85e") == "a b c d e"
    assert padded("\u201cq\u201d \U0001f600!") == "\u201c q \u201d \U0001f600 !"
    assert padded("") == padded(" \n ") == ""


@given(st.text(max_size=30))
def test_padding_keeps_every_character_but_spaces(value):
    found = text(rendering.pad_punctuation(tf.constant(value)))
    # RE2's spaces and Python's are the same ones.
    assert found.replace(" ", "") == "".join(value.split())
    assert text(rendering.pad_punctuation(tf.constant(found))) == found


def asked(question, context, *answers):
    row = {"question": question, "context": context, "answers": list(answers), "split": "train"}
    found = rendering.mrqa_question({name: tf.constant(value) for name, value in row.items()})
    return text(found["question"]), text(found["context"]), list(found["answers"].numpy())


def test_texts_of_mrqa_have_their_marks_or_words():
    row = (
        " who was n't it ",
        "[TLE] Bob [SEP] <P> He left ( now ) . </P> [DOC] [PAR] `` It 's 5 %",
        "5 %",
    )
    assert asked(*row) == (
        "who was n ' t it",
        "[ TLE ] Bob [ SEP ] < P > He left ( now ) . < / P > [ DOC ] [ PAR ] ` ` It ' s 5 %",
        [b"5 %"],
    )
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks import rendering\n"
        "rendering.mrqa_text.rewritten = True\n"
    )
    try:
        assert asked(*row) == (
            "who wasn ' t it ?",
            "Title : Bob Passage : He left ( now ) . \" It ' s 5 %",
            [b"5 %"],
        )
        assert asked("Who?", "a", "b")[0] == "Who ?" and asked("", "a", "b")[0] == ""
    finally:
        gin.clear_config()


def test_markup_of_multirc_goes():
    row = {
        name: tf.constant("<b>Sent 1: </b>A < b.<br>B")
        for name in ("question", "answer", "paragraph")
    }
    assert {text(value) for value in rendering.without_markup(row).values()} == {"Sent 1: A < b. B"}


def test_highlights_of_record_become_sentences():
    def passage(value):
        row = {"passage": tf.constant(value), "entities": tf.constant(["A", "B C"])}
        found = rendering.record_passage(row)
        assert text(found["entities"]) == "A, B C"
        return text(found["passage"])

    assert passage('Yes.\n@highlight\nNo\n@highlight\n"So"\n@highlight\nEnd') == (
        'Yes. No. "So" End'
    )
    assert passage("a @highlight b") == "a @highlight b"
    assert passage("What?\n@highlight\nThat!\n@highlight\n'x'\n@highlight\ny") == (
        "What? That! 'x' y"
    )


def marked(words, first, first_index, second, second_index):
    row = {
        "text": tf.constant(words),
        "span1_text": tf.constant(first),
        "span1_index": tf.constant(first_index, tf.int64),
        "span2_text": tf.constant(second),
        "span2_index": tf.constant(second_index, tf.int64),
    }
    return text(rendering.marked_spans(row)["text"])


def test_spans_of_wsc_are_marked_where_they_stand():
    assert marked("he said he ran", "he", 0, "he", 2) == "* he * said # he # ran"
    assert marked("he said Bob ran", "Bob", 2, "he", 0) == "# he # said * Bob * ran"
    assert marked("a (b) c+? d\\e", "(b) c+?", 1, "d\\e", 3) == "a * (b) c+? * # d\\e #"
    assert marked("a $^[x]|{2} \u00e9t\u00e9_ b", "$^[x]|{2}", 1, "\u00e9t\u00e9_", 2) == (
        "a * $^[x]|{2} * # \u00e9t\u00e9_ # b"
    )


def test_words_end_at_any_space_of_unicode():
    assert marked("a\u00a0b\u2003he c", "he", 2, "c", 3) == "a\u00a0b\u2003* he * # c #"


def test_a_span_that_is_not_there_leaves_the_text():
    assert marked("a b c", "x", 1, "c", 0) == "a b c"


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=5),
        min_size=2,
        max_size=6,
    ),
    st.data(),
)
def test_any_word_can_be_marked(words, draw):
    index = draw.draw(st.integers(0, len(words) - 1))
    expected = [*words[:index], "*", words[index], "*", *words[index + 1 :]]
    absent = " ".join(words) + "never"
    assert marked(" ".join(words), words[index], index, absent, 0) == " ".join(expected)


def test_targets_are_rendered():
    row = {"label": tf.constant(1, tf.int64), "a": tf.constant("first"), "b": tf.constant("second")}
    assert text(Label(("no", "yes")).render(row)) == "yes"
    assert text(Label(("no", "yes")).render({"label": tf.constant("no")})) == "no"
    assert text(Option(("a", "b")).render(row)) == "second"
    answers = {"answers": tf.constant(["x", "y"])}
    assert text(Answers().render(answers)) == "x"
    assert text(Answers().render({"answers": tf.constant([], tf.string)})) == "<unk>"


@given(st.floats(0, 5, width=32))
def test_numbers_are_rounded_as_numpy_rounds_them(value):
    found = text(Number().render({"label": tf.constant(value, tf.float32)}))
    assert found == str(np.round(value, 1))


def test_ratings_keep_one_decimal():
    ratings = {0.0: "0.0", 0.25: "0.2", 0.75: "0.8", 3.8: "3.8", 4.75: "4.8", 5.0: "5.0"}
    assert {
        rating: text(Number().render({"label": tf.constant(rating, tf.float32)}))
        for rating in ratings
    } == ratings


def fails(row):
    raise KeyError("nosuch")


CLEAN = {
    "raises": (fails, "`clean`, fails, failed at .*test_rendering.py line .*KeyError: 'nosuch'"),
    "none": (lambda row: None, "`clean` .*test_rendering.py line .* returned None, expected a row"),
    "text": (lambda row: "x", "returned 'x', expected a row"),
    "arguments": (lambda: {}, "`clean`, <lambda>, failed at .*test_rendering.py line .*TypeError"),
    "as Python": (lambda row: {"text": row["text"].upper()}, "AttributeError: .*'upper'"),
    "less": (lambda row: {"label": row["label"]}, "The row has no field 'text' of the template"),
}


@pytest.mark.parametrize("clean, found", CLEAN.values(), ids=CLEAN)
def test_a_clean_of_a_users_that_fails_is_one_sentence(clean, found):
    rows = tf.data.Dataset.from_tensor_slices({"text": ["a"], "label": ["a"], "row": [0]})
    with pytest.raises(PemtError, match=found):
        rendering.render(rows, "x: {text}", Label(("a",)), clean)
