"""Which files hold a data set: the layouts of the distributions, by TFDS's names.

    GLUE        CoLA/train.tsv, dev.tsv, test.tsv; MNLI/dev_matched.tsv, dev_mismatched.tsv; ...
    SuperGLUE   BoolQ/train.jsonl, val.jsonl, test.jsonl; ...
    SQuAD       SQuAD/train-v1.1.json, dev-v1.1.json
    MRQA        MRQA/train/NewsQA.jsonl.gz, MRQA/dev/NewsQA.jsonl.gz; ...
    PAWS        PAWS/final/train.tsv, dev.tsv, test.tsv
    SciTail     SciTailV1.1/snli_format/scitail_1.0_train.txt, ..., else its tsv_format
    WinoGrande  winogrande_1.1/train_xl.jsonl, ..., dev.jsonl, test.jsonl
    Yelp        yelp_review_polarity_csv/train.csv, test.csv

A folder may be in one with the name of its suite, such as GLUE/CoLA. Names of folders are matched
without case, hyphens and underscores, so that `sst2` is SST-2; files may be compressed (`.gz`).
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pemt_jax.tasks.sources.raw import glue, others, questions, super_glue

TSV = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
JSONL = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
MNLI = {
    "train": "train.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
WINOGRANDE = {f"train_{size}": f"train_{size}.jsonl" for size in ("xs", "s", "m", "l", "xl")}


@dataclass(frozen=True, eq=False)
class Layout:
    """One distribution of a data set.

    Attributes:
      suite: whose layout it is, for messages.
      folders: where the files may be below the folder of raw data, the usual place first.
      files: by TFDS's names of the splits.
      read: the open text of a file -> rows, see the package.
    """

    suite: str
    folders: tuple[str, ...]
    files: Mapping[str, str]
    read: Callable[[Any], Iterator[dict]]


def _glue(folder: str, read: Callable, files: Mapping[str, str] = TSV) -> tuple[Layout, ...]:
    return (Layout("GLUE", (folder, f"GLUE/{folder}", f"glue_data/{folder}"), files, read),)


def _tsv(fields: str, columns: str, label: str, classes: tuple[str, ...] = ()) -> Callable:
    pairs = dict(zip(fields.split(), columns.split(), strict=True))
    return functools.partial(glue.tsv, fields=pairs, label=label, classes=classes)


def _super_glue(folder: str, read: Callable) -> tuple[Layout, ...]:
    return (Layout("SuperGLUE", (folder, f"SuperGLUE/{folder}"), JSONL, read),)


def _jsonl(fields: str, classes: tuple[str, ...] = ()) -> Callable:
    return functools.partial(super_glue.examples, fields=fields.split(), classes=classes)


def _diagnostics(folder: str, fields: str) -> tuple[Layout, ...]:
    read, files = _jsonl(fields, glue.ENTAILED), {"test": f"{folder}.jsonl"}
    return (Layout("SuperGLUE", (folder, f"SuperGLUE/{folder}"), files, read),)


def _mrqa(name: str) -> tuple[Layout, ...]:
    files = {"train": f"train/{name}.jsonl.gz", "validation": f"dev/{name}.jsonl.gz"}
    return (Layout("MRQA", ("MRQA",), files, questions.mrqa),)


def _scitail(form: str, end: str, read: Callable) -> Layout:
    parts = {"train": "train", "validation": "dev", "test": "test"}
    files = {split: f"{form}/scitail_1.0_{part}.{end}" for split, part in parts.items()}
    return Layout("SciTail", ("SciTailV1.1", "SciTail", "SciTail/SciTailV1.1"), files, read)


SENTENCES, INFERENCE = "sentence1 sentence2", "premise hypothesis"
AX = _tsv(INFERENCE, SENTENCES, "label")
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "glue/cola": _glue("CoLA", glue.cola),
    "glue/sst2": _glue("SST-2", _tsv("sentence", "sentence", "label")),
    "glue/mrpc": _glue(
        "MRPC",
        functools.partial(
            glue.tsv, fields={"sentence1": "#1 String", "sentence2": "#2 String"}, label="Quality"
        ),
    ),
    "glue/qqp": _glue("QQP", _tsv("question1 question2", "question1 question2", "is_duplicate")),
    "glue/stsb": _glue("STS-B", glue.stsb),
    "glue/mnli": _glue("MNLI", _tsv(INFERENCE, SENTENCES, "gold_label", glue.INFERRED), MNLI),
    "glue/qnli": _glue(
        "QNLI", _tsv("question sentence", "question sentence", "label", glue.ENTAILED)
    ),
    "glue/rte": _glue("RTE", _tsv(SENTENCES, SENTENCES, "label", glue.ENTAILED)),
    "glue/wnli": _glue("WNLI", _tsv(SENTENCES, SENTENCES, "label")),
    "glue/ax": (
        *_glue("AX", AX, {"test": "AX.tsv"}),
        *_glue("diagnostic", AX, {"test": "diagnostic.tsv"}),
    ),
    "super_glue/boolq": _super_glue("BoolQ", _jsonl("question passage")),
    "super_glue/cb": _super_glue(
        "CB", _jsonl(INFERENCE, ("entailment", "contradiction", "neutral"))
    ),
    "super_glue/copa": _super_glue("COPA", _jsonl("premise choice1 choice2 question")),
    "super_glue/multirc": _super_glue("MultiRC", super_glue.multirc),
    "super_glue/record": _super_glue("ReCoRD", super_glue.record),
    "super_glue/rte": _super_glue("RTE", _jsonl(INFERENCE, glue.ENTAILED)),
    "super_glue/wic": _super_glue(
        "WiC", _jsonl("word sentence1 sentence2 start1 start2 end1 end2")
    ),
    "super_glue/wsc": _super_glue("WSC", functools.partial(super_glue.wsc, fixed=False)),
    "super_glue/wsc.fixed": _super_glue("WSC", functools.partial(super_glue.wsc, fixed=True)),
    "super_glue/axb": _diagnostics("AX-b", SENTENCES),
    "super_glue/axg": _diagnostics("AX-g", INFERENCE),
    "squad/v1.1": (
        Layout(
            "SQuAD",
            ("SQuAD",),
            {"train": "train-v1.1.json", "validation": "dev-v1.1.json"},
            questions.squad,
        ),
    ),
    "mrqa/squad": _mrqa("SQuAD"),
    "mrqa/news_qa": _mrqa("NewsQA"),
    "mrqa/trivia_qa": _mrqa("TriviaQA-web"),
    "mrqa/search_qa": _mrqa("SearchQA"),
    "mrqa/hotpot_qa": _mrqa("HotpotQA"),
    "mrqa/natural_questions": _mrqa("NaturalQuestionsShort"),
    "paws_wiki/labeled_final_tokenized": (
        Layout("PAWS", ("PAWS/final", "final", "paws_wiki_labeled_final/final"), TSV, others.paws),
    ),
    "sci_tail": (
        _scitail("snli_format", "txt", others.scitail_snli),
        _scitail("tsv_format", "tsv", others.scitail_tsv),
    ),
    "winogrande": (
        Layout(
            "WinoGrande",
            ("winogrande_1.1", "WinoGrande", "WinoGrande/winogrande_1.1"),
            {**WINOGRANDE, "validation": "dev.jsonl", "test": "test.jsonl"},
            others.winogrande,
        ),
    ),
    "yelp_polarity_reviews": (
        Layout(
            "Yelp",
            ("yelp_review_polarity_csv",),
            {"train": "train.csv", "test": "test.csv"},
            others.yelp,
        ),
    ),
}


def layouts(name: str) -> tuple[Layout, ...]:
    """The layouts of a data set of TFDS, such as "glue/cola:2.0.0"; empty where none is known."""
    return LAYOUTS.get(name.partition(":")[0], ())
