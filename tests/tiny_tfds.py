"""Prepared TFDS folders of a few hand-written rows, under real names, versions and splits."""

import tensorflow as tf
import tensorflow_datasets as tfds

LONG = "word " * 700 + "end"


def rows_of(fields, *rows, fill=0):
    """Rows as dictionaries, then `fill` plain ones of the same kind.

    The fields may end with `idx`; the first row of a file then has the highest number, so that the
    files are in another order than the original, as TFDS's are.
    """
    rows = list(rows)
    plain = rows[-1]
    for number in range(fill):
        rows.append(
            tuple(f"{value} {number}" if isinstance(value, str) else value for value in plain)
        )
    numbered = fields[-1] == "idx"
    return [
        dict(zip(fields, (*row, len(rows) - 1 - n) if numbered else row, strict=True))
        for n, row in enumerate(rows)
    ]


def answered(*rows, fill=0):
    """Rows of MRQA: question, context, answers."""
    empty = {
        "subset": "x",
        "qid": "q",
        "context_tokens": {"tokens": [], "offsets": []},
        "question_tokens": {"tokens": [], "offsets": []},
        "detected_answers": [],
    }
    return [
        {**empty, **row} for row in rows_of(("question", "context", "answers"), *rows, fill=fill)
    ]


SENTENCE = ("sentence", "label", "idx")
PAIR = ("sentence1", "sentence2", "label", "idx")
INFERENCE = ("premise", "hypothesis", "label", "idx")
WIC = ("word", "sentence1", "sentence2", "start1", "start2", "end1", "end2", "label", "idx")
WSC = ("text", "span1_text", "span1_index", "span2_text", "span2_index", "label", "idx")
MRQA = {
    "train": answered(
        ("Who won?", "The (Denver) Broncos won.", ["Denver Broncos", "Broncos"]),
        ("What?", "It is 5%.", ["5%"]),
        fill=18,
    ),
    "validation": answered(
        ("Why\u00a0not?", "a_b c\u2019s na\u00efve.", ["c\u2019s", "a_b"]),
        ("Where?", "Nowhere.", []),
    ),
}


def squad(rows):
    return [
        {
            "id": str(n),
            "title": "t",
            "question": question,
            "context": context,
            "answers": {"text": answers, "answer_start": [0] * len(answers)},
        }
        for n, (question, context, answers) in enumerate(rows)
    ]


def multirc(rows):
    return [
        {
            "paragraph": paragraph,
            "question": question,
            "answer": answer,
            "label": label,
            "idx": {"paragraph": p, "question": q, "answer": a},
        }
        for paragraph, question, answer, label, (p, q, a) in rows
    ]


def record(rows):
    return [
        {
            "passage": passage,
            "query": query,
            "entities": entities,
            "answers": answers,
            "idx": {"passage": n, "query": n},
        }
        for n, (passage, query, entities, answers) in enumerate(rows)
    ]


PASSAGE = 'Anna met Bob.\n@highlight\nBob smiled\n@highlight\nAnna "left!"\n@highlight\nThe end'
UNLABELLED = {"test": rows_of(SENTENCE, ("no label", -1))}

DATA = {
    "glue/cola:2.0.0": {
        "train": rows_of(SENTENCE, ("The cat sat.", 1), ("", 0), ("Sat cat the.", 0), fill=2),
        "validation": rows_of(SENTENCE, ("Is it?", 1), ("caf\u00e9 \U0001f600", 0), fill=3),
        **UNLABELLED,
    },
    "glue/sst2:2.0.0": {
        "train": rows_of(SENTENCE, ("so good", 1), ("so bad", 0), fill=18),
        "validation": rows_of(SENTENCE, ("fine ?", 1), ("", 0)),
        **UNLABELLED,
    },
    "glue/mrpc:2.0.0": {
        "train": rows_of(PAIR, ("A b.", "B a.", 1), ("A b.", "C.", 0)),
        "validation": rows_of(PAIR, ("x", "x", 1), ("x", "y", 0), fill=2),
    },
    "glue/qqp:2.0.0": {
        "train": rows_of(
            ("question1", "question2", "label", "idx"),
            ("How?", "How so?", 1),
            ("Who?", "When?", 0),
            fill=18,
        ),
        "validation": rows_of(
            ("question1", "question2", "label", "idx"), ("", "What?", 0), ("What?", "What ?", 1)
        ),
    },
    "glue/stsb:2.0.0": {
        "train": rows_of(PAIR, ("a", "b", 3.8), ("a", "a", 5.0), ("a", "c", 0.25)),
        "validation": rows_of(
            PAIR, ("d", "e", 1.333), ("d", "d", 4.75), ("d", "f", 0.0), ("d", "g", 2.5)
        ),
    },
    "glue/mnli:2.0.0": {
        "train": rows_of(
            INFERENCE,
            ("It rains.", "It is wet.", 0),
            ("It rains.", "Anna ran.", 1),
            ("It rains.", "It is dry.", 2),
            fill=3,
        ),
        "validation_matched": rows_of(INFERENCE, ("m", "n", 1)),
        "validation_mismatched": rows_of(INFERENCE, ("o", "p", 2), ("q", "", 0)),
    },
    "glue/qnli:2.0.0": {
        "train": rows_of(
            ("question", "sentence", "label", "idx"),
            ("Who?", "Bob did.", 0),
            ("Where?", "At noon.", 1),
            fill=18,
        ),
        "validation": rows_of(("question", "sentence", "label", "idx"), ("When?", "Now.", 0)),
    },
    "glue/rte:2.0.0": {
        "train": rows_of(PAIR, ("All left.", "Bob left.", 0), ("All left.", "Bob stayed.", 1)),
        "validation": rows_of(PAIR, ("a", "b", 1), ("c", "d", 0)),
    },
    "glue/wnli:2.0.0": {
        "train": rows_of(PAIR, ("Bob hit it.", "Bob hit.", 1), ("a", "b", 0)),
        "validation": rows_of(PAIR, ("c", "d", 0), ("e", "f", 1)),
    },
    "super_glue/boolq:1.0.2": {
        "train": rows_of(
            ("question", "passage", "label", "idx"),
            ("is it big", LONG, 1),
            ("is it small", "It is big.", 0),
        ),
        "validation": rows_of(
            ("question", "passage", "label", "idx"),
            ("was it", "It was.", 1),
            ("is it", "It was not.", 0),
        ),
    },
    "super_glue/cb:1.0.2": {
        "train": rows_of(
            INFERENCE,
            ("B: I know he left.", "he left", 0),
            ("A: I doubt it.", "it", 1),
            ("A: Did he?", "he did", 2),
            fill=3,
        ),
        "validation": rows_of(
            INFERENCE,
            ("p0", "h0", 0),
            ("p1", "h1", 1),
            ("p2", "h2", 2),
            ("p3", "h3", 0),
            ("p4", "h4", 1),
            ("p5", "h5", 2),
        ),
        "test": rows_of(INFERENCE, ("no", "label", -1)),
    },
    "super_glue/copa:1.0.2": {
        "train": rows_of(
            ("premise", "choice1", "choice2", "question", "label", "idx"),
            ("It fell.", "It broke.", "It flew.", "effect", 0),
            ("It grew.", "It rained.", "It burned.", "cause", 0),
        ),
        "validation": rows_of(
            ("premise", "choice1", "choice2", "question", "label", "idx"),
            ("a", "b", "c", "cause", 1),
            ("d", "e", "f", "effect", 0),
        ),
    },
    "super_glue/multirc:1.0.2": {
        "train": multirc(
            [
                (
                    "<b>Sent 1: </b>A cat.<br><b>Sent 2: </b>A dog.<br>",
                    "Who?",
                    "<b>cat</b>",
                    1,
                    (0, 0, 0),
                ),
                ("<b>Sent 1: </b>A cat.<br><b>Sent 2: </b>A dog.<br>", "Who?", "cow", 0, (0, 0, 1)),
            ]
        ),
        "validation": multirc(
            [
                (
                    f"paragraph {question // 3}",
                    f"q{question}?",
                    f"a{answer}",
                    (question + answer) % 2,
                    (question // 3, question, answer),
                )
                for question in reversed(range(6))
                for answer in range(3)
            ]
        ),
    },
    "super_glue/record:1.0.2": {
        "train": record(
            [
                (PASSAGE, "@placeholder left", ["Anna", "Bob"], ["Anna", "Anna K."]),
                ("Nobody came.", "@placeholder came", [], []),
                *[(f"P{n}.", f"@placeholder {n}", ["X"], ["X"]) for n in range(18)],
            ]
        ),
        "validation": record(
            [("A?\n@highlight\nB", "@placeholder is", ["A", "B"], ["B", "b", "A"])]
        ),
    },
    "super_glue/rte:1.0.2": {
        "train": rows_of(INFERENCE, ("All left.", "Bob left.", 0), ("a", "b", 1)),
        "validation": rows_of(INFERENCE, ("c", "d", 1), ("e", "f", 0)),
    },
    "super_glue/wic:1.0.2": {
        "train": rows_of(
            WIC,
            ("bank", "A river bank.", "Bank on it.", 0, 0, 0, 0, 0),
            ("run", "He ran.", "They run.", 0, 0, 0, 0, 1),
        ),
        "validation": rows_of(
            WIC, ("a", "a b", "a c", 0, 0, 0, 0, 1), ("d", "d e", "d f", 0, 0, 0, 0, 0)
        ),
    },
    "super_glue/wsc.fixed:1.0.2": {
        "train": rows_of(
            WSC,
            ("Mark (Jr.) saw Bob because he was near.", "Mark (Jr.)", 0, "he", 5, 1),
            ("It is his C++ [not *hers*].", "C++ [not", 3, "his", 2, 0),
            ("Ann said what? She", "She", 3, "what?", 2, 0),
            ("The words do not match here", "elsewhere", 1, "words", 1, 0),
        ),
        "validation": rows_of(
            WSC,
            ("Bob saw Al and he ran", "Al", 2, "he", 4, 1),
            ("Bob saw Al and he ran", "Bob", 0, "he", 4, 0),
        ),
    },
    "squad/v1.1:3.0.0": {
        "train": squad(
            [
                ("What's (the) title?", 'It\'s "U.S." (2.0)!', ["U.S.", "the U.S."]),
                *[(f"Q{n}?", f"C {n}.", [f"{n}"]) for n in range(19)],
            ]
        ),
        "validation": squad([("Who?", LONG, ["end", "The end", "word"]), ("", "", ["x."])]),
    },
    "mrqa/natural_questions:1.0.0": MRQA,
    "mrqa/hotpot_qa:1.0.0": MRQA,
    "mrqa/search_qa:1.0.0": MRQA,
    "mrqa/news_qa:1.0.0": MRQA,
    "mrqa/trivia_qa:1.0.0": MRQA,
    "winogrande:1.2.0": {
        **{
            f"train_{size}": rows_of(
                ("sentence", "option1", "option2", "label"),
                ("The _ was too big.", "trophy", "case", 0),
            )
            for size in ("xs", "s", "m", "l")
        },
        "train_xl": rows_of(
            ("sentence", "option1", "option2", "label"),
            ("The _ was too big?", "the trophy", "case", 0),
            ("_ fell.", "Ann", "Bo", 1),
            fill=18,
        ),
        "validation": rows_of(
            ("sentence", "option1", "option2", "label"),
            ("The _ .", "x", "y", 1),
            ("A _ .", "z", "w", 0),
        ),
        "test": rows_of(("sentence", "option1", "option2", "label"), ("_", "x", "y", -1)),
    },
    "paws_wiki/labeled_final_tokenized:1.1.0": {
        "train": rows_of(PAIR[:3], ("A to B", "B to A", 0), ("A and B", "B and A", 1)),
        "validation": rows_of(PAIR[:3], ("c", "c", 1), ("d", "e", 0)),
        "test": rows_of(PAIR[:3], ("f", "g", 0), ("h", "h", 1)),
    },
    "sci_tail:1.0.0": {
        "train": rows_of(INFERENCE[:3], ("Water boils.", "Water is hot.", 0), ("a", "b", 1)),
        "validation": rows_of(INFERENCE[:3], ("c", "d", 0), ("e", "f", 1), ("g", "h", 1)),
        "test": rows_of(INFERENCE[:3], ("unused", "unused", 0)),
    },
    "yelp_polarity_reviews:0.2.0": {
        "train": rows_of(
            ("text", "label"), ("Great!\\nReally?", 1), ("Bad \u2013 so bad.", 0), fill=18
        ),
        "test": rows_of(("text", "label"), ("", 1), (LONG, 0)),
    },
    "snli:1.1.0": {
        split: rows_of(
            INFERENCE[:3],
            ("A man sleeps.", "He rests.", 0),
            ("A man.", "A dog.", -1),
            ("A man.", "No man.", 2),
            ("A man.", "A tall man.", 1),
        )
        for split in ("train", "validation", "test")
    },
}


def write(root, name, splits, shards=1):
    """Write one prepared TFDS folder below `root`, as TFDS lays it out."""
    builder = tfds.builder(name, data_dir=str(root))
    folder = builder.data_path
    folder.mkdir(parents=True, exist_ok=True)
    infos = []
    for split, rows in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=builder.name, split=split, filetype_suffix="tfrecord"
        )
        lengths, size = [], 0
        for shard in range(shards):
            part = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]
            path = template.sharded_filepath(shard_index=shard, num_shards=shards)
            with tf.io.TFRecordWriter(str(path)) as writer:
                for row in part:
                    record = builder.info.features.serialize_example(
                        builder.info.features.encode_example(row)
                    )
                    writer.write(record)
                    size += len(record)
            lengths.append(len(part))
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    builder.info.write_to_directory(folder)


def write_all(root):
    """Write every data set of the registry below `root` and return it."""
    for name, splits in DATA.items():
        write(root, name, splits)
    return root
