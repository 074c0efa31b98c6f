"""SQuAD's JSON (Rajpurkar et al. 2016) and MRQA's JSON lines (Fisch et al. 2019)."""

import json
from collections.abc import Iterator
from typing import TextIO


def squad(file: TextIO) -> Iterator[dict]:
    """SQuAD 1.1: articles with paragraphs with questions, one row per question."""
    for article in json.load(file)["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {
                    "id": question["id"],
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers/text": [answer["text"] for answer in question["answers"]],
                }


def mrqa(lines: TextIO) -> Iterator[dict]:
    """A data set of MRQA: a header, then a context per line with its questions."""
    header = json.loads(next(lines, "null"))
    if not isinstance(header, dict) or "header" not in header:
        raise ValueError("its first line is no header of MRQA")
    subset = header["header"]["dataset"]
    for line in lines:
        context = json.loads(line)
        for question in context["qas"]:
            yield {
                "subset": subset,
                "qid": question["qid"],
                "context": context["context"].strip(),
                "question": question["question"].strip(),
                "answers": question["answers"],
            }
