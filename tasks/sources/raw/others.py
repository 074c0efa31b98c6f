"""PAWS, SciTail, WinoGrande and Yelp, each as its authors distribute it."""

import csv
import json
from collections.abc import Iterable, Iterator

from pemt_jax.tasks.sources.raw.glue import UNLABELLED, check_columns

SCITAIL = ("entails", "neutral")  # TFDS's numbers


def paws(lines: Iterable[str]) -> Iterator[dict]:
    """PAWS-Wiki labeled_final (Zhang et al. 2019): id, sentence1, sentence2, label, with a header.

    The sentences are tokenized. A field may be quoted here, unlike in GLUE.
    """
    reader = csv.DictReader(lines, delimiter="\t")
    check_columns(reader.fieldnames, ("sentence1", "sentence2", "label"))
    for row in reader:
        yield {
            "sentence1": row["sentence1"],
            "sentence2": row["sentence2"],
            "label": int(row["label"]),
        }


def scitail_snli(lines: Iterable[str]) -> Iterator[dict]:
    """SciTail's snli_format (Khot et al. 2018), which the PEMT authors read: JSON lines."""
    for line in lines:
        row = json.loads(line)
        label = row["gold_label"].replace("entailment", "entails")
        yield {
            "premise": row["sentence1"],
            "hypothesis": row["sentence2"],
            "label": SCITAIL.index(label),
        }


def scitail_tsv(lines: Iterable[str]) -> Iterator[dict]:
    """SciTail's tsv_format: premise, hypothesis, label, no header.

    Quotes are ordinary characters. TFDS takes them for quotation marks, and an unpaired one
    swallows the lines up to the next: 23,097 of 23,596 training rows are left.
    """
    for premise, hypothesis, label in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        yield {"premise": premise, "hypothesis": hypothesis, "label": SCITAIL.index(label)}


def winogrande(lines: Iterable[str]) -> Iterator[dict]:
    """WinoGrande 1.1 (Sakaguchi et al. 2020): the answer is the number of an option from 1."""
    for line in lines:
        row = json.loads(line)
        answer = row.get("answer")
        yield {
            **{field: row[field] for field in ("sentence", "option1", "option2")},
            "label": int(answer) - 1 if answer else UNLABELLED,
        }


def yelp(lines: Iterable[str]) -> Iterator[dict]:
    """Yelp polarity (Zhang et al. 2015): "1","text" per line, classes 1 and 2.

    The text stays as it is written, with doubled quotes, as TFDS and the PEMT authors have it.
    """
    for line in lines:
        if not line.startswith(('"1","', '"2","')):
            raise ValueError('a line does not begin with "1"," or "2","')
        yield {"text": line[5:-2].strip(), "label": int(line[1]) - 1}
