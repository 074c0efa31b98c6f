"""GLUE's tab-separated files (Wang et al. 2019, arXiv 1804.07461): quotes are ordinary characters.

Lines that lack a field are left out, as the data sets that the PEMT authors loaded and TFDS do; QQP
has some. The number of a row, `idx`, counts them.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

UNLABELLED = -1
ENTAILED = ("entailment", "not_entailment")
INFERRED = ("entailment", "neutral", "contradiction")


def check_columns(found: Sequence[str] | None, expected: Iterable[str]) -> None:
    """Raise ValueError unless a file has the columns."""
    if missing := [column for column in expected if column not in (found or ())]:
        raise ValueError(f"it has no column {missing[0]!r}")


def class_number(text: str, classes: Sequence[str] = ()) -> int:
    """The number of a class: of its name among `classes`, else the number that the text is."""
    return classes.index(text) if text in classes else int(text)


def tsv(
    lines: Iterable[str], fields: Mapping[str, str], label: str, classes: Sequence[str] = ()
) -> Iterator[dict]:
    """Rows of a file with a header.

    Args:
      lines: of the file.
      fields: our name of each text and the column that has it.
      label: the column of the label; test files have none.
      classes: the names of the classes where labels are names.
    """
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    check_columns(reader.fieldnames, fields.values())
    labelled = label in (reader.fieldnames or ())
    for number, row in enumerate(reader):
        if not all(row[column] is not None for column in fields.values()):
            continue
        if labelled and not row[label]:
            continue
        found = class_number(row[label], classes) if labelled else UNLABELLED
        yield {**{ours: row[its] for ours, its in fields.items()}, "label": found, "idx": number}


def cola(lines: Iterable[str]) -> Iterator[dict]:
    """CoLA: source, label, mark of the source, sentence, without a header; the test file has one
    and only a number and the sentence."""
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(reader):
        if number == 0 and row == ["index", "sentence"]:
            yield from (
                {"sentence": sentence, "label": UNLABELLED, "idx": number}
                for number, (_, sentence) in enumerate(reader)
            )
            return
        yield {"sentence": row[3], "label": int(row[1]), "idx": number}


def stsb(lines: Iterable[str]) -> Iterator[dict]:
    """STS-B: the score is a number from 0 to 5, kept with the precision of float32 as in TFDS."""
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    check_columns(reader.fieldnames, ("sentence1", "sentence2"))
    for number, row in enumerate(reader):
        score = row.get("score", str(UNLABELLED))
        if row["sentence1"] is None or row["sentence2"] is None or not score:
            continue
        yield {
            "sentence1": row["sentence1"],
            "sentence2": row["sentence2"],
            "label": float(np.float32(score)),
            "idx": number,
        }
