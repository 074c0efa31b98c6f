"""The literal texts of every task and split, on the rows of tiny_tfds: (row, inputs, targets)."""

from tiny_tfds import LONG

FLAT = 'Anna met Bob. Bob smiled. Anna "left!" The end'

EXPECTED = {
    "pemt_mnli": {
        "train": [
            (0, "premise: It rains. hypothesis: It is wet.", "entailment"),
            (1, "premise: It rains. hypothesis: Anna ran.", "neutral"),
            (2, "premise: It rains. hypothesis: It is dry.", "contradiction"),
        ],
        "validation": [
            (0, "premise: o hypothesis: p", "contradiction"),
            (1, "premise: q hypothesis: ", "entailment"),
        ],
        "test": [(0, "premise: m hypothesis: n", "neutral")],
    },
    "pemt_qnli": {
        "train": [
            (0, "question: Who? sentence: Bob did.", "entailment"),
            (1, "question: Where? sentence: At noon.", "not_entailment"),
        ],
        "validation": [(5, "question: Where? 3 sentence: At noon. 3", "not_entailment")],
        "test": [(0, "question: When? sentence: Now.", "entailment")],
    },
    "pemt_qqp": {
        "train": [
            (0, "question1: How? question2: How so?", "duplicate"),
            (1, "question1: Who? question2: When?", "not_duplicate"),
        ],
        "validation": [(5, "question1: Who? 3 question2: When? 3", "not_duplicate")],
        "test": [
            (0, "question1:  question2: What?", "not_duplicate"),
            (1, "question1: What? question2: What ?", "duplicate"),
        ],
    },
    "pemt_sst2": {
        "train": [(0, "sentence: so good", "positive"), (1, "sentence: so bad", "negative")],
        "validation": [(5, "sentence: so bad 3", "negative")],
        "test": [(0, "sentence: fine ?", "positive"), (1, "sentence: ", "negative")],
    },
    "pemt_squad": {
        "train": [
            (
                0,
                "question: What ' s ( the ) title ? context: It ' s \" U . S . \" ( 2 . 0 ) !",
                "U . S .",
            ),
            (1, "question: Q0 ? context: C 0 .", "0"),
            (3, "question: Q2 ? context: C 2 .", "2"),
            (4, "question: Q3 ? context: C 3 .", "3"),
        ],
        "validation": [(2, "question: Q1 ? context: C 1 .", "1")],
        "test": [
            (0, f"question: Who ? context: {LONG}", "end"),
            (1, "question:  context: ", "x ."),
        ],
    },
    "pemt_record": {
        "train": [
            (0, f"record query: @placeholder left entities: Anna, Bob passage: {FLAT}", "Anna"),
            (0, f"record query: @placeholder left entities: Anna, Bob passage: {FLAT}", "Anna K."),
            (1, "record query: @placeholder came entities:  passage: Nobody came.", "<unk>"),
            (3, "record query: @placeholder 1 entities: X passage: P1.", "X"),
        ],
        "validation": [(2, "record query: @placeholder 0 entities: X passage: P0.", "X")],
        "test": [(0, "record query: @placeholder is entities: A, B passage: A? B", "B")],
    },
    "pemt_cola": {
        "train": [
            (0, "sentence: The cat sat.", "acceptable"),
            (1, "sentence: ", "unacceptable"),
            (2, "sentence: Sat cat the.", "unacceptable"),
        ],
        "validation": [
            (0, "sentence: Is it?", "acceptable"),
            (2, "sentence: caf\u00e9 \U0001f600 0", "unacceptable"),
        ],
        "test": [(1, "sentence: caf\u00e9 \U0001f600", "unacceptable")],
    },
    "pemt_mrpc": {
        "train": [
            (0, "sentence1: A b. sentence2: B a.", "equivalent"),
            (1, "sentence1: A b. sentence2: C.", "not_equivalent"),
        ],
        "validation": [
            (0, "sentence1: x sentence2: x", "equivalent"),
            (1, "sentence1: x sentence2: y", "not_equivalent"),
        ],
        "test": [
            (2, "sentence1: x 0 sentence2: y 0", "not_equivalent"),
            (3, "sentence1: x 1 sentence2: y 1", "not_equivalent"),
        ],
    },
    "pemt_rte": {
        "train": [
            (0, "sentence1: All left. sentence2: Bob left.", "entailment"),
            (1, "sentence1: All left. sentence2: Bob stayed.", "not_entailment"),
        ],
        "validation": [(1, "sentence1: c sentence2: d", "entailment")],
        "test": [(0, "sentence1: a sentence2: b", "not_entailment")],
    },
    "pemt_stsb": {
        "train": [
            (0, "sentence1: a sentence2: b", "3.8"),
            (1, "sentence1: a sentence2: a", "5.0"),
            (2, "sentence1: a sentence2: c", "0.2"),
        ],
        "validation": [
            (0, "sentence1: d sentence2: e", "1.3"),
            (1, "sentence1: d sentence2: d", "4.8"),
        ],
        "test": [(2, "sentence1: d sentence2: f", "0.0"), (3, "sentence1: d sentence2: g", "2.5")],
    },
    "pemt_multirc": {
        "train": [
            (0, "question: Who? answer: cat paragraph: Sent 1: A cat. Sent 2: A dog. ", "True"),
            (1, "question: Who? answer: cow paragraph: Sent 1: A cat. Sent 2: A dog. ", "False"),
        ],
        "validation": [
            (6, "question: q3? answer: a0 paragraph: paragraph 1", "True"),
            (7, "question: q3? answer: a1 paragraph: paragraph 1", "False"),
            (8, "question: q3? answer: a2 paragraph: paragraph 1", "True"),
        ],
        "test": [
            (0, "question: q5? answer: a0 paragraph: paragraph 1", "True"),
            (1, "question: q5? answer: a1 paragraph: paragraph 1", "False"),
        ],
    },
    "pemt_boolq": {
        "train": [
            (0, f"question: is it big passage: {LONG}", "True"),
            (1, "question: is it small passage: It is big.", "False"),
        ],
        "validation": [(1, "question: is it passage: It was not.", "False")],
        "test": [(0, "question: was it passage: It was.", "True")],
    },
    "pemt_wic": {
        "train": [
            (0, "sentence1: A river bank. sentence2: Bank on it. word: bank", "False"),
            (1, "sentence1: He ran. sentence2: They run. word: run", "True"),
        ],
        "validation": [(1, "sentence1: d e sentence2: d f word: d", "False")],
        "test": [(0, "sentence1: a b sentence2: a c word: a", "True")],
    },
    "pemt_wsc": {
        "train": [
            (0, "text: * Mark (Jr.) * saw Bob because # he # was near.", "True"),
            (1, "text: It is # his # * C++ [not * *hers*].", "False"),
            (2, "text: Ann said # what? # * She *", "False"),
        ],
        "validation": [(1, "text: * Bob * saw Al and # he # ran", "False")],
        "test": [(0, "text: Bob saw * Al * and # he # ran", "True")],
    },
    "pemt_cb": {
        "train": [
            (0, "premise: B: I know he left. hypothesis: he left", "entailment"),
            (1, "premise: A: I doubt it. hypothesis: it", "contradiction"),
            (2, "premise: A: Did he? hypothesis: he did", "neutral"),
        ],
        "validation": [
            (2, "premise: p2 hypothesis: h2", "neutral"),
            (3, "premise: p3 hypothesis: h3", "entailment"),
            (5, "premise: p5 hypothesis: h5", "neutral"),
        ],
        "test": [
            (0, "premise: p0 hypothesis: h0", "entailment"),
            (1, "premise: p1 hypothesis: h1", "contradiction"),
            (4, "premise: p4 hypothesis: h4", "contradiction"),
        ],
    },
    "pemt_nq": {
        "train": [
            (0, "question: Who won ? context: The ( Denver ) Broncos won .", "Denver Broncos"),
            (1, "question: What ? context: It is 5 % .", "5 %"),
        ],
        "validation": [(2, "question: What ? 0 context: It is 5 % . 0", "5 %")],
        "test": [
            (0, "question: Why not ? context: a_b c \u2019 s na\u00efve .", "c \u2019 s"),
            (1, "question: Where ? context: Nowhere .", "<unk>"),
        ],
    },
    "pemt_winogrande": {
        "train": [
            (0, "sentence: The _ was too big? option1: the trophy option2: case", "the trophy"),
            (1, "sentence: _ fell. option1: Ann option2: Bo", "Bo"),
        ],
        "validation": [(2, "sentence: _ fell. 0 option1: Ann 0 option2: Bo 0", "Bo 0")],
        "test": [
            (0, "sentence: The _ . option1: x option2: y", "y"),
            (1, "sentence: A _ . option1: z option2: w", "z"),
        ],
    },
    "pemt_yelp": {
        "train": [(0, "sentence: Great!\\nReally?", "1"), (1, "sentence: Bad \u2013 so bad.", "0")],
        "validation": [(2, "sentence: Bad \u2013 so bad. 0", "0")],
        "test": [(0, "sentence: ", "1"), (1, f"sentence: {LONG}", "0")],
    },
    "pemt_scitail": {
        "train": [
            (0, "premise: Water boils. hypothesis: Water is hot.", "entailment"),
            (1, "premise: a hypothesis: b", "neutral"),
        ],
        "validation": [(0, "premise: c hypothesis: d", "entailment")],
        "test": [
            (1, "premise: e hypothesis: f", "neutral"),
            (2, "premise: g hypothesis: h", "neutral"),
        ],
    },
    "pemt_paws": {
        "train": [
            (0, "sentence1: A to B sentence2: B to A", "0"),
            (1, "sentence1: A and B sentence2: B and A", "1"),
        ],
        "validation": [
            (0, "sentence1: c sentence2: c", "1"),
            (1, "sentence1: d sentence2: e", "0"),
        ],
        "test": [(0, "sentence1: f sentence2: g", "0"), (1, "sentence1: h sentence2: h", "1")],
    },
    "pemt_wnli": {
        "train": [
            (0, "sentence1: Bob hit it. sentence2: Bob hit.", "entailment"),
            (1, "sentence1: a sentence2: b", "not_entailment"),
        ],
        "validation": [(1, "sentence1: e sentence2: f", "entailment")],
        "test": [(0, "sentence1: c sentence2: d", "not_entailment")],
    },
    "pemt_super_glue_rte": {
        "train": [
            (0, "premise: All left. hypothesis: Bob left.", "entailment"),
            (1, "premise: a hypothesis: b", "not_entailment"),
        ],
        "validation": [(1, "premise: e hypothesis: f", "entailment")],
        "test": [(0, "premise: c hypothesis: d", "not_entailment")],
    },
    "pemt_copa": {
        "train": [
            (0, "premise: It fell. choice1: It broke. choice2: It flew.", "choice1"),
            (1, "premise: It grew. choice1: It rained. choice2: It burned.", "choice1"),
        ],
        "validation": [(1, "premise: d choice1: e choice2: f", "choice1")],
        "test": [(0, "premise: a choice1: b choice2: c", "choice2")],
    },
    "pemt_snli": {
        "train": [
            (0, "premise: A man sleeps. hypothesis: He rests.", "entailment"),
            (2, "premise: A man. hypothesis: No man.", "contradiction"),
            (3, "premise: A man. hypothesis: A tall man.", "neutral"),
        ],
        "validation": [
            (0, "premise: A man sleeps. hypothesis: He rests.", "entailment"),
            (2, "premise: A man. hypothesis: No man.", "contradiction"),
            (3, "premise: A man. hypothesis: A tall man.", "neutral"),
        ],
        "test": [
            (0, "premise: A man sleeps. hypothesis: He rests.", "entailment"),
            (2, "premise: A man. hypothesis: No man.", "contradiction"),
            (3, "premise: A man. hypothesis: A tall man.", "neutral"),
        ],
    },
}
for _name in ("pemt_hotpotqa", "pemt_searchqa", "pemt_newsqa", "pemt_triviaqa"):
    EXPECTED[_name] = EXPECTED["pemt_nq"]

# Tokens under T5's vocabulary: inputs and targets of the first test row of each task (of the first
# training row of SQuAD, whose first test row is very long), and the first example of T5's paper.
T5_TOKENS = {
    "translate": (
        [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1],
        [644, 4598, 229, 19250, 5, 1],
    ),
    "pemt_mnli": ([3, 17398, 10, 3, 51, 22455, 10, 3, 29, 1], [7163, 1]),
    "pemt_qnli": ([822, 10, 366, 58, 7142, 10, 852, 5, 1], [3, 35, 5756, 297, 1]),
    "pemt_qqp": ([822, 536, 10, 822, 357, 10, 363, 58, 1], [59, 834, 26, 413, 26221, 1]),
    "pemt_sst2": ([7142, 10, 1399, 3, 58, 1], [1465, 1]),
    "pemt_squad": (
        [
            822,
            10,
            363,
            3,
            31,
            3,
            7,
            41,
            8,
            3,
            61,
            2233,
            3,
            58,
            2625,
            10,
            94,
            3,
            31,
            3,
            7,
            96,
            412,
            3,
            5,
            180,
            3,
            5,
            96,
            41,
            204,
            3,
            5,
            3,
            632,
            3,
            61,
            3,
            55,
            1,
        ],
        [412, 3, 5, 180, 3, 5, 1],
    ),
    "pemt_record": (
        [1368, 11417, 10, 3320, 4687, 5235, 19, 12311, 10, 71, 6, 272, 5454, 10, 71, 58, 272, 1],
        [272, 1],
    ),
    "pemt_cola": ([7142, 10, 11949, 3, 2, 1], [29452, 1]),
    "pemt_mrpc": (
        [7142, 536, 10, 3, 226, 3, 632, 7142, 357, 10, 3, 63, 3, 632, 1],
        [59, 834, 15, 1169, 15592, 1],
    ),
    "pemt_rte": ([7142, 536, 10, 3, 9, 7142, 357, 10, 3, 115, 1], [59, 834, 35, 5756, 297, 1]),
    "pemt_stsb": ([7142, 536, 10, 3, 26, 7142, 357, 10, 3, 89, 1], [3, 11739, 1]),
    "pemt_multirc": (
        [822, 10, 3, 1824, 755, 58, 1525, 10, 3, 9, 632, 8986, 10, 8986, 209, 1],
        [10998, 1],
    ),
    "pemt_boolq": ([822, 10, 47, 34, 5454, 10, 94, 47, 5, 1], [10998, 1]),
    "pemt_wic": (
        [7142, 536, 10, 3, 9, 3, 115, 7142, 357, 10, 3, 9, 3, 75, 1448, 10, 3, 9, 1],
        [10998, 1],
    ),
    "pemt_wsc": (
        [1499, 10, 5762, 1509, 1429, 901, 1429, 11, 1713, 3, 88, 1713, 4037, 1],
        [10998, 1],
    ),
    "pemt_cb": ([3, 17398, 10, 3, 102, 632, 22455, 10, 3, 107, 632, 1], [3, 35, 5756, 297, 1]),
    "pemt_nq": (
        [
            822,
            10,
            1615,
            59,
            3,
            58,
            2625,
            10,
            3,
            9,
            834,
            115,
            3,
            75,
            3,
            22,
            3,
            7,
            3,
            29,
            9,
            2,
            162,
            3,
            5,
            1,
        ],
        [3, 75, 3, 22, 3, 7, 1],
    ),
    "pemt_winogrande": (
        [7142, 10, 37, 3, 834, 3, 5, 1182, 536, 10, 3, 226, 1182, 357, 10, 3, 63, 1],
        [3, 63, 1],
    ),
    "pemt_yelp": ([7142, 10, 1], [209, 1]),
    "pemt_scitail": ([3, 17398, 10, 3, 15, 22455, 10, 3, 89, 1], [7163, 1]),
    "pemt_paws": ([7142, 536, 10, 3, 89, 7142, 357, 10, 3, 122, 1], [3, 632, 1]),
    "pemt_wnli": ([7142, 536, 10, 3, 75, 7142, 357, 10, 3, 26, 1], [59, 834, 35, 5756, 297, 1]),
    "pemt_super_glue_rte": (
        [3, 17398, 10, 3, 75, 22455, 10, 3, 26, 1],
        [59, 834, 35, 5756, 297, 1],
    ),
    "pemt_copa": (
        [3, 17398, 10, 3, 9, 1160, 536, 10, 3, 115, 1160, 357, 10, 3, 75, 1],
        [1160, 357, 1],
    ),
    "pemt_snli": (
        [3, 17398, 10, 71, 388, 2085, 7, 5, 22455, 10, 216, 880, 7, 5, 1],
        [3, 35, 5756, 297, 1],
    ),
    "pemt_hotpotqa": (
        [
            822,
            10,
            1615,
            59,
            3,
            58,
            2625,
            10,
            3,
            9,
            834,
            115,
            3,
            75,
            3,
            22,
            3,
            7,
            3,
            29,
            9,
            2,
            162,
            3,
            5,
            1,
        ],
        [3, 75, 3, 22, 3, 7, 1],
    ),
    "pemt_searchqa": (
        [
            822,
            10,
            1615,
            59,
            3,
            58,
            2625,
            10,
            3,
            9,
            834,
            115,
            3,
            75,
            3,
            22,
            3,
            7,
            3,
            29,
            9,
            2,
            162,
            3,
            5,
            1,
        ],
        [3, 75, 3, 22, 3, 7, 1],
    ),
    "pemt_newsqa": (
        [
            822,
            10,
            1615,
            59,
            3,
            58,
            2625,
            10,
            3,
            9,
            834,
            115,
            3,
            75,
            3,
            22,
            3,
            7,
            3,
            29,
            9,
            2,
            162,
            3,
            5,
            1,
        ],
        [3, 75, 3, 22, 3, 7, 1],
    ),
    "pemt_triviaqa": (
        [
            822,
            10,
            1615,
            59,
            3,
            58,
            2625,
            10,
            3,
            9,
            834,
            115,
            3,
            75,
            3,
            22,
            3,
            7,
            3,
            29,
            9,
            2,
            162,
            3,
            5,
            1,
        ],
        [3, 75, 3, 22, 3, 7, 1],
    ),
}


def t5_texts(name):
    """The texts whose tokens T5_TOKENS has."""
    if name == "translate":
        return ("translate English to German: The house is wonderful.", "Das Haus ist wunderbar.")
    return EXPECTED[name]["train" if name == "pemt_squad" else "test"][0][1:]
