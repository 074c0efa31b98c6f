"""From the fields of a row to `inputs` and `targets`, shared by all tasks.

`render` fills a template such as "premise: {premise} hypothesis: {hypothesis}"; a task whose text
needs preparation names one of the functions below it, each from row to row. Formats are those of
the T5 paper (Raffel et al. 2020, appendix D) without the task's name in front, as in the PEMT
authors' code. All are TensorFlow operations, whose regular expressions are RE2's.
"""

import string
from collections.abc import Callable, Mapping, Sequence

import gin
import tensorflow as tf

from pemt_jax.common.errors import PemtError, UsageError, nearest, shortened
from pemt_jax.common.user_input.code import defined_at, user_code
from pemt_jax.tasks.targets import Answers, Row, Target, as_text, examples_per_answer

SPACE = r"\s\p{Z}\x0b\x1c-\x1f\x{85}"  # RE2's \s is ASCII only; text has more kinds of space


def render(
    dataset: tf.data.Dataset,
    template: str,
    target: Target,
    clean: Callable[[Row], Row] | None = None,
    group: Sequence[str] = (),
) -> tf.data.Dataset:
    """Turn rows into text-to-text examples.

    Args:
      dataset: rows as pemt_jax.tasks.sources.split_source yields them.
      template: of the inputs, with fields in braces.
      target: what makes the targets.
      clean: applied to a row first.
      group: fields that together identify the question which a row belongs to.

    Returns:
      Examples with inputs, targets (string), row (int64, its number in the source's split) and,
      where there are any, answers (string [answers]) and group (string).
    """

    @tf.autograph.experimental.do_not_convert  # AutoGraph would wrap our errors in its own
    def example(row: Row) -> Row:
        row = _cleaned(row, clean) if clean else row
        made = {"inputs": fill(template, row), "targets": target.render(row), "row": row["row"]}
        if group:
            made["group"] = tf.strings.join(
                [tf.strings.as_string(row[name]) for name in group], separator="/"
            )
        if isinstance(target, Answers):
            made["answers"] = target.all(row)
        if isinstance(target, Answers) and target.one_example_each:
            made["split"] = row["split"]
        return made

    dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    if isinstance(target, Answers) and target.one_example_each:
        dataset = dataset.flat_map(_one_example_each)
    return dataset


def _cleaned(row: Row, clean: Callable[[Row], Row]) -> Row:
    """What a task's own function makes of a row."""
    with user_code(f"`clean`, {getattr(clean, '__name__', clean)},", clean):
        found = clean(row)
    if not isinstance(found, Mapping):
        raise PemtError(
            f"`clean` ({defined_at(clean)}) returned {shortened(found)}, expected a row: a "
            "dictionary of fields."
        )
    return dict(found)


def fill(template: str, row: Row) -> tf.Tensor:
    """The template with the texts and numbers of a row, string scalar."""
    parts = []
    for text, field, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if field is None:
            continue
        if field not in row:
            raise UsageError(
                f"The row has no field {field!r} of the template {template!r}{nearest(field, row)}."
            )
        if row[field].shape.rank != 0:
            raise UsageError(
                f"The field {field!r} of the template {template!r} is a list, "
                "expected a text or a number (`clean` can join it)."
            )
        parts.append(as_text(row[field]))
    return tf.strings.join(parts)


def _one_example_each(example: Row) -> tf.data.Dataset:
    """In training one example per answer; elsewhere one per question, unless gin says otherwise."""
    example = dict(example)
    each = tf.equal(example.pop("split"), "train") | examples_per_answer()
    targets = tf.cond(each, lambda: example["answers"], lambda: example["answers"][:1])
    return tf.data.Dataset.from_tensor_slices(targets).map(
        lambda answer: {**example, "targets": answer}
    )


def pad_punctuation(text: tf.Tensor) -> tf.Tensor:
    """Put spaces around each character but letters, marks, numbers, spaces and underscores."""
    padded = tf.strings.regex_replace(text, rf"([^_\p{{L}}\p{{M}}\p{{N}}{SPACE}])", r" \1 ")
    return tf.strings.strip(tf.strings.regex_replace(padded, f"[{SPACE}]+", " "))


def padded_question(row: Row) -> Row:
    """Separate the punctuation of question, context and answers, as T5 does for SQuAD."""
    return {
        name: pad_punctuation(value) if value.dtype == tf.string and name != "split" else value
        for name, value in row.items()
    }


MARKS = (  # of MRQA's contexts, and what its loader for the authors' source makes of them
    (r"\[PAR\] ", "\n\n"),
    (r"\[TLE\]", "Title:"),
    (r"\[SEP\]", "\nPassage:"),
    (r"</?(?:Li|OI|Ol|Dd|UI|Ul|P)>|\[DOC\]", ""),
)
SPACINGS = (  # of tokenized text
    *((rf" ({mark})", r"\1") for mark in (r"\.", r"\?", "!", ",")),
    (" ' ", "'"),
    *((rf" ({end})", r"\1") for end in ("n't", "'m", "'s", "'ve", "'re")),
    (r"(\() ", r"\1"),
    *((rf" ({mark})", r"\1") for mark in (r"\)", "%")),
    ("`` ", '"'),
    (" ''", '"'),
    (" (:)", r"\1"),
)


@gin.configurable
def mrqa_text(rewritten: bool = False) -> bool:
    """Whether texts of MRQA are rewritten as by the loader of the authors' source (`tau/mrqa`):
    marks of structure become words or go, spaces before punctuation go, questions end with "?".
    By default they are those of MRQA's files."""
    return rewritten


def mrqa_question(row: Row) -> Row:
    """MRQA: as `padded_question`, of the rewritten texts if `mrqa_text` says so."""
    return padded_question(_rewritten(row) if mrqa_text() else row)


def _rewritten(row: Row) -> Row:
    context = _replaced(row["context"], MARKS)
    question = tf.strings.regex_replace(tf.strings.strip(row["question"]), r"([^?])\z", r"\1?")
    texts = {"context": context, "question": question, "answers": row["answers"]}
    return {**row, **{name: _replaced(value, SPACINGS) for name, value in texts.items()}}


def _replaced(text: tf.Tensor, pairs: Sequence[tuple[str, str]]) -> tf.Tensor:
    for pattern, replacement in pairs:
        text = tf.strings.regex_replace(text, pattern, replacement)
    return text


def without_markup(row: Row) -> Row:
    """MultiRC: `<br>` becomes a space; `<b>` and `</b>` go."""

    def plain(text: tf.Tensor) -> tf.Tensor:
        text = tf.strings.regex_replace(text, "<br>", " ")
        return tf.strings.regex_replace(text, "</?b>", "")

    return {**row, **{name: plain(row[name]) for name in ("question", "answer", "paragraph")}}


def record_passage(row: Row) -> Row:
    """ReCoRD: highlights become sentences of the passage, entities one text."""
    passage = tf.strings.regex_replace(row["passage"], r"""([.?!"'])\n@highlight\n""", r"\1 ")
    passage = tf.strings.regex_replace(passage, r"\n@highlight\n", ". ")
    entities = tf.strings.reduce_join(row["entities"], separator=", ")
    return {**row, "passage": passage, "entities": entities}


def marked_spans(row: Row) -> Row:
    """WSC: `* span1 *` and `# span2 #`, each at its word number."""
    first, second = row["span1_index"], row["span2_index"]
    text = _mark(row["text"], row["span1_text"], first, "*")
    # The marks of the first span add two words before the second.
    second += 2 * tf.cast(first < second, second.dtype)
    return {**row, "text": _mark(text, row["span2_text"], second, "#")}


def _mark(text: tf.Tensor, span: tf.Tensor, words_before: tf.Tensor, mark: str) -> tf.Tensor:
    """Put marks around a span after a number of words; text without it stays as it is."""
    literal = tf.strings.regex_replace(span, r"([!-/:-@\[-^`{-~])", r"\\\1")  # no metacharacters
    pattern = tf.strings.join(
        [f"^((?:[^{SPACE}]+[{SPACE}]){{", tf.strings.as_string(words_before), "})(", literal, ")"]
    )
    return tf.strings.regex_replace(text, pattern, rf"\1{mark} \2 {mark}", replace_global=False)
