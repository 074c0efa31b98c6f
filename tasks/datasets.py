"""The paper's 23 data sets and five more of its authors' registry, one `Dataset` each.

Source tasks are MNLI, QNLI, QQP, SST-2, SQuAD and ReCoRD; the 17 others are target tasks. Formats,
label words, splits and metrics are those of the authors' code (`pemt/data/tasks.py` of
JachinLin2022/PEMT); data are TFDS's. Where these differ a comment says so. Mixtures:

    pemt_sources                  the six source tasks, by their numbers of examples
    pemt_glue  pemt_super_glue  pemt_mrqa  pemt_others      the target tasks of each suite
    pemt_targets                  all 17
"""

import functools

import seqio

from pemt_jax.tasks import metrics
from pemt_jax.tasks.registry import Dataset, register_packaged
from pemt_jax.tasks.rendering import (
    marked_spans,
    mrqa_question,
    mrqa_text,
    padded_question,
    record_passage,
    without_markup,
)
from pemt_jax.tasks.sources.split_source import SplitSource
from pemt_jax.tasks.splits import Halves, HeldOut, Own
from pemt_jax.tasks.targets import Answers, Label, Number, Option

ENTAILED = ("entailment", "not_entailment")
TRUTH = ("False", "True")
CB_WORDS = ("entailment", "contradiction", "neutral")

glue = functools.partial(Dataset, order=("idx",), splits=Halves(), metric=metrics.accuracy)
pair = functools.partial(glue, inputs="sentence1: {sentence1} sentence2: {sentence2}")
inference = functools.partial(glue, inputs="premise: {premise} hypothesis: {hypothesis}")
question = functools.partial(
    Dataset,
    inputs="question: {question} context: {context}",
    clean=padded_question,
    target=Answers(),
    splits=HeldOut(),
    metric=metrics.squad,
)
mrqa = functools.partial(question, clean=mrqa_question, choices=(mrqa_text,))

SOURCES = (
    inference(
        name="pemt_mnli",
        data="glue/mnli:2.0.0",
        target=Label(("entailment", "neutral", "contradiction")),
        splits=Own(validation="validation_mismatched", test="validation_matched"),
        description="Say whether a premise entails, contradicts or is neutral to a hypothesis.",
    ),
    glue(
        name="pemt_qnli",
        data="glue/qnli:2.0.0",
        inputs="question: {question} sentence: {sentence}",
        target=Label(ENTAILED),
        splits=HeldOut(),
        description="Say whether a sentence holds the answer to a question.",
    ),
    glue(
        name="pemt_qqp",
        data="glue/qqp:2.0.0",
        inputs="question1: {question1} question2: {question2}",
        target=Label(("not_duplicate", "duplicate")),
        splits=HeldOut(),
        metric=metrics.with_f1("duplicate"),
        description="Decide whether two questions ask the same thing.",
    ),
    glue(
        name="pemt_sst2",
        data="glue/sst2:2.0.0",
        inputs="sentence: {sentence}",
        target=Label(("negative", "positive")),
        splits=HeldOut(),
        description="Decide whether a sentence from a film review is negative or positive.",
    ),
    question(
        name="pemt_squad",
        data="squad/v1.1:3.0.0",
        target=Answers("answers/text"),
        description="Answer a question about an encyclopedia paragraph with words of it.",
    ),
    Dataset(
        name="pemt_record",
        data="super_glue/record:1.0.2",
        inputs="record query: {query} entities: {entities} passage: {passage}",
        clean=record_passage,
        target=Answers(one_example_each=True),
        splits=HeldOut(),
        order=("idx/passage", "idx/query"),
        metric=metrics.record,
        description="Name the entity of a news article that fills the gap in a sentence about it.",
    ),
)

GLUE = (
    glue(
        name="pemt_cola",
        data="glue/cola:2.0.0",
        inputs="sentence: {sentence}",
        target=Label(("unacceptable", "acceptable")),
        metric=metrics.matthews,
        description="Judge whether a sentence is acceptable English grammar.",
    ),
    pair(
        name="pemt_mrpc",
        data="glue/mrpc:2.0.0",
        target=Label(("not_equivalent", "equivalent")),
        metric=metrics.with_f1("equivalent"),
        description="Decide whether two sentences from the news mean the same.",
    ),
    pair(
        name="pemt_rte",
        data="glue/rte:2.0.0",
        target=Label(ENTAILED),
        description="Say whether the first sentence entails the second one.",
    ),
    pair(
        name="pemt_stsb",
        data="glue/stsb:2.0.0",
        target=Number(),
        metric=metrics.correlations,
        description="Rate how similar two sentences are in meaning, from zero to five.",
    ),
)

SUPER_GLUE = (
    glue(
        name="pemt_multirc",
        data="super_glue/multirc:1.0.2",
        inputs="question: {question} answer: {answer} paragraph: {paragraph}",
        clean=without_markup,
        target=Label(TRUTH),
        metric=metrics.multirc,
        order=("idx/paragraph", "idx/question", "idx/answer"),
        group=("idx/paragraph", "idx/question"),
        description="Judge whether an answer to a question about a paragraph is right.",
    ),
    glue(
        name="pemt_boolq",
        data="super_glue/boolq:1.0.2",
        inputs="question: {question} passage: {passage}",
        target=Label(TRUTH),
        description="Answer a yes or no question about a passage.",
    ),
    glue(
        name="pemt_wic",
        data="super_glue/wic:1.0.2",
        inputs="sentence1: {sentence1} sentence2: {sentence2} word: {word}",
        target=Label(TRUTH),
        description="Decide whether a word has the same sense in two sentences.",
    ),
    glue(
        name="pemt_wsc",
        data="super_glue/wsc.fixed:1.0.2",
        inputs="text: {text}",
        clean=marked_spans,
        clean_fields=("span1_text", "span1_index", "span2_text", "span2_index"),
        target=Label(TRUTH),
        description="Decide whether a marked pronoun refers to a marked noun in a text.",
    ),
    inference(
        name="pemt_cb",
        data="super_glue/cb:1.0.2",
        target=Label(CB_WORDS),
        metric=metrics.with_macro_f1(CB_WORDS),
        description="Say how far the author of a text is committed to a hypothesis about it.",
    ),
)

MRQA = (
    mrqa(
        name="pemt_nq",
        data="mrqa/natural_questions:1.0.0",
        description="Answer a question that was put to a search engine from an article.",
    ),
    mrqa(
        name="pemt_hotpotqa",
        data="mrqa/hotpot_qa:1.0.0",
        description="Answer a question by joining facts from several paragraphs.",
    ),
    mrqa(
        name="pemt_searchqa",
        data="mrqa/search_qa:1.0.0",
        description="Find the answer to a quiz clue in snippets of web pages.",
    ),
    mrqa(
        name="pemt_newsqa",
        data="mrqa/news_qa:1.0.0",
        description="Answer a question about a news story with words of the story.",
    ),
)

OTHERS = (
    Dataset(  # TFDS has no split `train` but five sizes; train_xl is the complete one
        name="pemt_winogrande",
        data="winogrande:1.2.0",
        inputs="sentence: {sentence} option1: {option1} option2: {option2}",
        target=Option(("option1", "option2")),
        splits=HeldOut(train="train_xl"),
        metric=metrics.accuracy,
        description="Choose the option that fills the blank in a sentence.",
    ),
    Dataset(  # targets are the numbers '0' and '1'; TFDS calls the classes '1' and '2'
        name="pemt_yelp",
        data="yelp_polarity_reviews:0.2.0",
        inputs="sentence: {text}",
        target=Label(("0", "1")),
        splits=HeldOut(test="test", at_most=100_000),
        metric=metrics.accuracy,
        description="Decide whether a review of a business is negative or positive.",
    ),
    Dataset(  # TFDS calls the class `entails`
        name="pemt_scitail",
        data="sci_tail:1.0.0",
        inputs="premise: {premise} hypothesis: {hypothesis}",
        target=Label(("entailment", "neutral")),
        splits=Halves(),
        metric=metrics.accuracy,
        description="Say whether a premise from a science text entails a hypothesis.",
    ),
    Dataset(  # targets are '0' and '1'; the text is tokenized
        name="pemt_paws",
        data="paws_wiki/labeled_final_tokenized:1.1.0",
        inputs="sentence1: {sentence1} sentence2: {sentence2}",
        target=Label(("0", "1")),
        metric=metrics.accuracy,
        description="Decide whether two sentences with much the same words are paraphrases.",
    ),
)

EXTRAS = (
    pair(
        name="pemt_wnli",
        data="glue/wnli:2.0.0",
        target=Label(ENTAILED[::-1]),
        description="Say whether a sentence with a pronoun replaced follows from the original.",
    ),
    inference(
        name="pemt_super_glue_rte",
        data="super_glue/rte:1.0.2",
        target=Label(ENTAILED),
        description="Say whether a premise entails a hypothesis.",
    ),
    glue(
        name="pemt_copa",
        data="super_glue/copa:1.0.2",
        inputs="premise: {premise} choice1: {choice1} choice2: {choice2}",
        target=Label(("choice1", "choice2")),
        description="Choose the likelier cause or effect of a premise.",
    ),
    # The authors' SNLI, which no experiment uses, has numbers as targets and the policy HeldOut;
    # here it has words and its own splits. Pairs whose raters did not agree are left out.
    Dataset(
        name="pemt_snli",
        data="snli:1.1.0",
        inputs="premise: {premise} hypothesis: {hypothesis}",
        target=Label(("entailment", "neutral", "contradiction")),
        drop_unlabelled=True,
        metric=metrics.accuracy,
        description="Say how a hypothesis relates to a premise that describes a picture.",
    ),
    mrqa(  # the authors' `triviaqa` reads SQuAD
        name="pemt_triviaqa",
        data="mrqa/trivia_qa:1.0.0",
        description="Answer a trivia question with words of a web page.",
    ),
)

for _row in (*SOURCES, *GLUE, *SUPER_GLUE, *MRQA, *OTHERS, *EXTRAS):
    register_packaged(_row)


def number_of_examples(task: seqio.Task) -> float:
    """The mixing rate of a task: its number of training examples."""
    source = task.source
    assert isinstance(source, SplitSource)
    return float(len(source.rows("train")))


for _name, _rows in {
    "sources": SOURCES,
    "glue": GLUE,
    "super_glue": SUPER_GLUE,
    "mrqa": MRQA,
    "others": OTHERS,
    "targets": (*GLUE, *SUPER_GLUE, *MRQA, *OTHERS),
}.items():
    seqio.MixtureRegistry.add(
        f"pemt_{_name}", [row.name for row in _rows], default_rate=number_of_examples
    )
