"""Hand-written files in the layouts of the data sets' own distributions, by path and content."""

import gzip
import json


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def glue(folder, columns, label, rows, parts=("train", "dev", "test")):
    """Files with a header and a number per line; the last part has no labels."""
    columns, files = columns.split(), {}
    for part in parts:
        labelled = not part.startswith("test")
        header = ["index", *columns, *([label] if labelled else [])]
        lines = [
            [str(n), *[f"{text} {part}" for text in row[:-1]], *([row[-1]] if labelled else [])]
            for n, row in enumerate(rows)
        ]
        files[f"{folder}/{part}.tsv"] = tsv(header, *lines)
    return files


def super_glue(folder, *rows):
    """Three files of JSON lines; the last one has no labels."""
    files = {}
    for part in ("train", "val", "test"):
        drop = {"label"} if part == "test" else set()
        numbered = [{**row, "idx": n} for n, row in enumerate(rows)]
        kept = [{key: row[key] for key in row if key not in drop} for row in numbered]
        files[f"{folder}/{part}.jsonl"] = jsonl(*kept)
    return files


def multirc(labelled):
    def answers(*texts):
        return [
            {"text": text, "idx": 10 + n, **({"label": n % 2} if labelled else {})}
            for n, text in enumerate(texts)
        ]

    questions = [
        {"question": "Who?", "idx": 4, "answers": answers("a <b>cat</b>", "a dog")},
        {"question": "Where?", "idx": 5, "answers": answers("here")},
    ]
    return jsonl({"idx": 3, "version": 1.1, "passage": {"text": "A<br>b.", "questions": questions}})


def record(labelled):
    text = "Ann met Bob.\n@highlight\nAnn left"
    spans = [{"start": 8, "end": 10}, {"start": 0, "end": 2}, {"start": 24, "end": 26}]
    answers = [{"text": name, "start": 0, "end": 1} for name in ("Bob", "Ann", "Bob")]
    queries = [
        {"query": "@placeholder left", "idx": 7, **({"answers": answers} if labelled else {})},
        {"query": "@placeholder stayed", "idx": 8, **({"answers": []} if labelled else {})},
    ]
    passage = {"text": text, "entities": spans}
    return jsonl({"source": "x", "idx": 2, "passage": passage, "qas": queries})


def wsc(text, first, second, label):
    names = ("span1_text", "span1_index", "span2_text", "span2_index")
    target = dict(zip(names, (*first, *second), strict=True))
    return {"text": text, "target": target, "label": label}


def squad(*questions):
    paragraphs = [{"context": ' It\'s "U.S." ', "qas": list(questions[:2])}]
    articles = [
        {"title": "T", "paragraphs": paragraphs},
        {"title": "U", "paragraphs": [{"context": "c", "qas": list(questions[2:])}]},
    ]
    return json.dumps({"version": "1.1", "data": articles})


def asked(number, question, *answers):
    found = [{"text": text, "answer_start": 0} for text in answers]
    return {"id": str(number), "question": question, "answers": found}


def mrqa(name, split):
    questions = [
        {
            "qid": f"{split}{n}",
            "question": f" {question} ",
            "question_tokens": [["Who", 0]],
            "detected_answers": [{"text": "b ", "char_spans": [[0, 1]], "token_spans": [[0, 0]]}],
            "answers": answers,
        }
        for n, (question, answers) in enumerate((("Who?", ["Bob", "b"]), ("When?", ["now"])))
    ]
    context = {
        "id": "",
        "context": " [TLE] Bob [SEP] He left now . ",
        "context_tokens": [["Bob", 6]],
        "qas": questions,
    }
    return jsonl({"header": {"dataset": name, "split": split}}, context, {**context, "qas": []})


WINOGRANDE = [
    {"qID": "a", "sentence": "The _ fell.", "option1": "cup", "option2": "cat", "answer": "2"},
    {"qID": "b", "sentence": "A _ sat.", "option1": "cat", "option2": "cup", "answer": "1"},
]
SCITAIL = [('An "odd quote.', "It is odd.", "entails"), ("Water", 'boils" now', "neutral")]
SNLI_FORMAT = {"entails": "entailment", "neutral": "neutral"}
MNLI = "promptID pairID genre sentence1_binary_parse sentence2_parse sentence1 sentence2 label1"
PAIRS = "sentence1 sentence2"
SPLITS = ("train", "dev", "test")

GLUE = {
    **{
        f"CoLA/{part}.tsv": tsv(
            ("gj04", "1", "", 'A "cat sat.'), ("bc81", "0", "*", "Sat cat."), ("x", "1", "", "It.")
        )
        for part in ("train", "dev")
    },
    "CoLA/test.tsv": tsv(("index", "sentence"), ("0", 'Is "it?'), ("1", "No.")),
    **glue("SST-2", "sentence", "label", [('"good', "1"), ("bad", "0")]),
    **{
        f"MRPC/{part}.tsv": "\ufeff"
        + tsv(
            ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            ("1", "7", "8", 'He said "no.', "No ."),
            ("0", "9", "10", "x", "y"),
        )
        for part in ("train", "dev")
    },
    "MRPC/test.tsv": tsv(
        ("index", "#1 ID", "#2 ID", "#1 String", "#2 String"), "0 1 2 x y".split()
    ),
    **glue(
        "QQP",
        "qid1 qid2 question1 question2",
        "is_duplicate",
        [("1", "2", 'How "so?', "How?", "1"), ("3", "4", "Who?", "When?", "0")],
    ),
    **glue(
        "STS-B",
        "genre filename year old_index source1 source2 sentence1 sentence2",
        "score",
        [(*"abcdefgh", "3.850"), (*"abcdefg", '"', "0.250"), (*"abcdefgh", "5.000")],
    ),
    **glue(
        "MNLI",
        MNLI,
        "gold_label",
        [(*"1234567", "x", "neutral"), (*"1234567", "x", "contradiction")],
        ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"),
    ),
    **glue(
        "QNLI",
        "question sentence",
        "label",
        [("a?", "b", "entailment"), ("c?", "d", "not_entailment")],
    ),
    **glue("RTE", PAIRS, "label", [("a", 'b"', "not_entailment"), ("c", "d", "entailment")]),
    **glue("WNLI", PAIRS, "label", [("a", "b", "0"), ("c", "d", "1")]),
    "AX/AX.tsv": tsv(("index", "sentence1", "sentence2"), ("0", "a", "b")),
}
GLUE["QQP/train.tsv"] += "2\t5\t6\tshort\n" + tsv("3 7 8 What? What? 1".split())

SUPER_GLUE = {
    **super_glue(
        "BoolQ",
        {"question": "is it", "passage": "P\u2028x -- \u00e9", "label": True},
        {"question": "was it", "passage": "Q", "label": False},
    ),
    **super_glue(
        "CB",
        *(
            {"premise": "p", "hypothesis": word, "label": word}
            for word in ("neutral", "contradiction", "entailment")
        ),
    ),
    **super_glue(
        "COPA",
        {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1},
        {"premise": "q", "choice1": "c", "choice2": "d", "question": "effect", "label": 0},
    ),
    **super_glue(
        "RTE",
        {"premise": "a", "hypothesis": "b", "label": "not_entailment"},
        {"premise": "c", "hypothesis": "d", "label": "entailment"},
    ),
    **super_glue(
        "WiC",
        *(
            {
                "word": "run",
                "sentence1": "a run",
                "sentence2": "run on",
                "start1": 2,
                "end1": 5,
                "start2": 0,
                "end2": 3,
                "version": 1.1,
                "label": label,
            }
            for label in (True, False)
        ),
    ),
    **super_glue(
        "WSC",
        wsc("Mark saw Bob. he left", ("Mark", 0), ("he", 3), True),
        wsc("The men said they ran", ("the men", 0), ("They.", 3), False),
        wsc("Ann gave the cup to Bo", ("the\ncup", 2), ("Bo", 5), False),
        wsc("Kamenev, Stalin and Zinoviev", ("Kamenev and Zinoviev", 0), ("Stalin", 1), True),
    ),
    "MultiRC/train.jsonl": multirc(True),
    "MultiRC/val.jsonl": multirc(True),
    "MultiRC/test.jsonl": multirc(False),
    "ReCoRD/train.jsonl": record(True),
    "ReCoRD/val.jsonl": record(True),
    "ReCoRD/test.jsonl": record(False),
    "AX-b/AX-b.jsonl": jsonl(
        {"sentence1": "a", "sentence2": "b", "label": "not_entailment", "idx": 0, "logic": "x"}
    ),
    "AX-g/AX-g.jsonl": jsonl(
        {"premise": "a", "hypothesis": "b", "label": "entailment", "idx": 0, "pair_id": 1}
    ),
}

OTHERS = {
    "SQuAD/train-v1.1.json": squad(
        asked(1, "Who?", "U.S.", "the U.S."), asked(2, "What ?", "U"), asked(3, "", "c")
    ),
    "SQuAD/dev-v1.1.json": squad(asked(4, "Who?", "U.S."), asked(5, "x"), asked(6, "y", "c")),
    **{
        f"MRQA/{folder}/{name}.jsonl.gz": mrqa(name, folder)
        for name in ("SQuAD NewsQA TriviaQA-web SearchQA HotpotQA NaturalQuestionsShort".split())
        for folder in ("train", "dev")
    },
    **{
        f"PAWS/final/{part}.tsv": tsv(
            ("id", "sentence1", "sentence2", "label"),
            ("1", "`` A '' to B .", 'B to 5 " A .', "0"),
            ("2", '"quoted ""so"" ."', "C .", "1"),
        )
        for part in SPLITS
    },
    **{
        f"SciTailV1.1/snli_format/scitail_1.0_{part}.txt": jsonl(
            *(
                {"sentence1": a, "sentence2": b, "gold_label": SNLI_FORMAT[label]}
                for a, b, label in SCITAIL
            )
        )
        for part in SPLITS
    },
    **{
        f"winogrande_1.1/{part}.jsonl": jsonl(*WINOGRANDE)
        for part in ("train_xs", "train_s", "train_m", "train_l", "train_xl", "dev")
    },
    "winogrande_1.1/test.jsonl": jsonl(
        *({key: row[key] for key in row if key != "answer"} for row in WINOGRANDE)
    ),
    **{
        f"yelp_review_polarity_csv/{part}.csv": '"2","So ""good"" \\n here. "\n"1","Bad, bad"\n'
        for part in ("train", "test")
    },
}

SCITAIL_TSV = {f"SciTailV1.1/tsv_format/scitail_1.0_{part}.tsv": tsv(*SCITAIL) for part in SPLITS}
FILES = {**GLUE, **SUPER_GLUE, **OTHERS}


def write(root, files=FILES):
    """Write files below `root` and return it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return root
