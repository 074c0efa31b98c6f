"""JSON-lines files of a user's task."""

import json

from case import Case, case, fifo, link, mode

TASKS = """
import pemt_jax as pemt
from pemt_jax.tasks import targets
pemt.task("mine", {"train": "rows.jsonl", "validation": "dev.jsonl"}, inputs="text: {text}",
          labels=%s, description="Say what it is.")
"""
GOOD = '{"text": "a film", "label": "good"}\n{"text": "a lamp", "label": "bad"}\n'
WORDS = '("bad", "good")'


def rows(name: str, content: object, *says: str, labels: str = WORDS, code=(1, 2), **more) -> Case:
    """A file of rows, of which the task's examples are shown."""
    return case(
        name,
        "tasks --import my_tasks show mine",
        *says,
        code=code,
        files={"my_tasks.py": TASKS % labels, "rows.jsonl": content, "dev.jsonl": GOOD},
        prints=True,
        **more,
    )


def line(**row: object) -> str:
    return json.dumps({"text": "x", "label": "good"} | row) + "\n"


BAD_ROWS = {
    "no JSON": ("nonsense\n", "Line 3", "rows.jsonl"),
    "half an object": ('{"text": "x", "la\n', "Line 3"),
    "a list": ("[1, 2]\n", "Line 3"),
    "a number": ("7\n", "Line 3"),
    "null": ("null\n", "Line 3"),
    "a text": ('"x"\n', "Line 3"),
    "two objects in a line": (line().strip() + line(), "Line 3"),
    "single quotes": ("{'text': 'x', 'label': 'good'}\n", "Line 3"),
    "a comma at the end": ('{"text": "x", "label": "good",}\n', "Line 3"),
    "a comment": ("// rows\n", "Line 3"),
    "nested 100,000 deep": ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "deep"),
    "half a surrogate": ('{"text": "\\ud800", "label": "good"}\n', "surrogate"),
    "a number of 5,000 digits": ('{"text": "x", "label": ' + "9" * 5000 + "}\n", "Line 3"),
    "no label": ('{"text": "x"}\n', "Row 2", "label"),
    "no text": ('{"label": "good"}\n', "Row 2", "text"),
    "a misspelt field": ('{"texts": "x", "label": "good"}\n', "text", "nearest"),
    "an unknown word": (line(label="god"), "god"),
    "another case of a word": (line(label="Good"), "Good"),
    "a number among words": (line(label=1), "1"),
    "a null label": (line(label=None), "label"),
    "a true label": (line(label=True), "label"),
    "a list of labels": (line(label=["good"]), "label"),
    "an object for a label": (line(label={"a": 1}), "label"),
    "a number for a text": (line(text=3), "text"),
    "a null text": (line(text=None), "text"),
    "a list of numbers": (line(text=[1, 2]), "text"),
    "an object for a text": (line(text={"a": "b"}), "text"),
    "an empty object": ("{}\n", "Row 2"),
    "NaN": ('{"text": "x", "label": NaN}\n', "label"),
    "a number that overflows": ('{"text": "x", "label": 1e999}\n', "label"),
}
NUMBERED = '{"text": "x", "label": %s}\n'
FILES = {
    "latin-1": (GOOD.replace("film", "fa\xe7ade").encode("latin-1"), "UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (GOOD.encode("utf-16-le"), ""),
    "zeros": (bytes(1000), "rows.jsonl"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\3", "rows.jsonl"),
    "empty": ("", "mine"),
    "blank lines only": ("\n\n  \n", "mine"),
    "a link to nothing": (link("nothing"), "rows.jsonl"),
    "no permission": (mode(0, GOOD), "rows.jsonl"),
    "a JSON array of all": (json.dumps([json.loads(row) for row in GOOD.splitlines()]), "Line 1"),
    "pretty-printed": (json.dumps(json.loads(GOOD.splitlines()[0]), indent=1), "Line 1"),
    "CSV": ("text,label\na film,good\n", "Line 1"),
    "carriage returns alone": (GOOD.replace("\n", "\r"), "Line 1"),
}

CASES = [
    *(rows(name, GOOD + text, *says) for name, (text, *says) in BAD_ROWS.items()),
    *(rows(f"the file is {name}", content, *says) for name, (content, *says) in FILES.items()),
    rows("the file is a pipe", fifo, "rows.jsonl", code=2, never=("does not exist",)),
    rows("the file is a folder", link("."), "rows.jsonl", code=2),
    *(
        rows(f"class {value} of two", NUMBERED % 0 + NUMBERED % value, "label")
        for value in ("2", "-1", "0.5", "99999999999999999999", "1e308", "true")
    ),
    *(
        rows(f"{value} for a number", NUMBERED % 0.5 + NUMBERED % value, labels="targets.Number()")
        for value in ('"many"', "null", "[1]", "NaN", "1e999", "-1e999")
    ),
    *(
        rows(f"{value} for answers", NUMBERED % '["a"]' + NUMBERED % value, "label",
             labels='targets.Answers("label")')
        for value in ("[1]", "3", "null", '"a"', "[null]", "[[]]", "{}")
    ),
    rows("a byte-order mark is accepted", "\ufeff" + GOOD, code=0),
    rows("carriage returns and blank lines are accepted", GOOD.replace("\n", "\r\n\r\n"), code=0),
    rows("a row of a million characters is accepted", GOOD + line(text="x" * 10**6), code=0),
    rows("unknown fields are accepted", GOOD + line(more=[None, {"a": 1}]), code=0),
    case(
        "a missing file", "tasks --import my_tasks show mine", "rows.jsonl",
        files={"my_tasks.py": TASKS % WORDS, "dev.jsonl": GOOD},
    ),
    case(
        "bad rows that training meets",
        ("train", "--gin_file=$GIN", "--gin_file=own.gin", "--gin.MODEL_DIR=run",
         "--gin.INITIAL_CHECKPOINT_PATH=$BASE", "--gin.MIXTURE_OR_TASK_NAME=mine"),
        "Line 3", code=1,
        files={"my_tasks.py": TASKS % WORDS, "rows.jsonl": GOOD + "x\n", "dev.jsonl": GOOD,
               "own.gin": "import my_tasks\n"},
    ),
]  # fmt: skip
