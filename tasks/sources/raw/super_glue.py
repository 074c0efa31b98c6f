"""SuperGLUE's JSON lines (Wang et al. 2019, arXiv 1905.00537), one reader per layout."""

import json
from collections.abc import Iterable, Iterator, Sequence

from pemt_jax.tasks.sources.raw.glue import UNLABELLED

TRUTH = ("False", "True")


def examples(
    lines: Iterable[str], fields: Sequence[str], classes: Sequence[str] = ()
) -> Iterator[dict]:
    """One example per line with its fields, `idx` and, but in test files, `label`.

    Args:
      lines: of the file.
      fields: which to read.
      classes: the names of the classes; empty where the label is a number or true or false.
    """
    for line in lines:
        row = json.loads(line)
        label = row.get("label", UNLABELLED)
        yield {
            **{field: row[field] for field in fields},
            "idx": row["idx"],
            "label": classes.index(label) if isinstance(label, str) else int(label),
        }


def wsc(lines: Iterable[str], fixed: bool) -> Iterator[dict]:
    """WSC; `fixed` corrects spans that are not in the text as they are written, as TFDS does."""
    for line in lines:
        row = json.loads(line)
        example = {"text": row["text"], "idx": row["idx"]}
        example["label"] = int(row.get("label", UNLABELLED))
        for span in ("span1", "span2"):
            text, index = row["target"][f"{span}_text"], row["target"][f"{span}_index"]
            example[f"{span}_index"] = index
            example[f"{span}_text"] = _in_text(text, row["text"], index) if fixed else text
        yield example


def _in_text(span: str, text: str, index: int) -> str:
    """A span with the capital, spaces and end that it has in the text, from its word `index` on;
    unchanged where the words of the text are others."""
    if span in text:
        return span
    first = text.split()[index][0]
    letter = span[0].lower() if first.islower() else span[0].upper()
    corrected = f"{letter}{span[1:]}".rstrip(".").replace("\n", " ")
    return corrected if corrected in text else span


def multirc(lines: Iterable[str]) -> Iterator[dict]:
    """MultiRC: a passage per line with its questions and their answers; one row per answer."""
    for line in lines:
        row = json.loads(line)
        for question in row["passage"]["questions"]:
            for answer in question["answers"]:
                yield {
                    "paragraph": row["passage"]["text"],
                    "question": question["question"],
                    "answer": answer["text"],
                    "label": int(answer.get("label", UNLABELLED)),
                    "idx/paragraph": row["idx"],
                    "idx/question": question["idx"],
                    "idx/answer": answer["idx"],
                }


def record(lines: Iterable[str]) -> Iterator[dict]:
    """ReCoRD: a passage per line with its queries; entities and answers once each, sorted."""
    for line in lines:
        row = json.loads(line)
        text, spans = row["passage"]["text"], row["passage"]["entities"]
        entities = sorted({text[span["start"] : span["end"] + 1] for span in spans})
        for query in row["qas"]:
            yield {
                "passage": text,
                "query": query["query"],
                "entities": entities,
                "answers": sorted({answer["text"] for answer in query.get("answers", ())}),
                "idx/passage": row["idx"],
                "idx/query": query["idx"],
            }
