"""Every task and split of the registry, offline, on a few hand-written rows (tiny_tfds)."""

import functools
import subprocess
import sys

import gin
import numpy as np
import pytest
import seqio
from expected_examples import EXPECTED
from tiny_tfds import DATA

from pemt_jax.common.errors import PemtError
from pemt_jax.data import token_cache as data
from pemt_jax.tasks import datasets, description, metrics
from pemt_jax.tasks.splits import SPLITS, Halves, HeldOut, Own
from pemt_jax.tasks.targets import Label
from pemt_jax.training.evaluator import score, with_average

TABLE = {
    row.name: row
    for row in (
        *datasets.SOURCES,
        *datasets.GLUE,
        *datasets.SUPER_GLUE,
        *datasets.MRQA,
        *datasets.OTHERS,
        *datasets.EXTRAS,
    )
}
LENGTHS = {"inputs": 64, "targets": 16}
SIZES = {  # train, validation, test; ReCoRD trains on two answers of its first question
    "pemt_mnli": (6, 2, 1),
    "pemt_qnli": (18, 2, 1),
    "pemt_qqp": (18, 2, 2),
    "pemt_sst2": (18, 2, 2),
    "pemt_squad": (18, 2, 2),
    "pemt_record": (19, 2, 1),
    "pemt_cola": (5, 2, 3),
    "pemt_mrpc": (2, 2, 2),
    "pemt_rte": (2, 1, 1),
    "pemt_stsb": (3, 2, 2),
    "pemt_multirc": (2, 9, 9),
    "pemt_boolq": (2, 1, 1),
    "pemt_wic": (2, 1, 1),
    "pemt_wsc": (4, 1, 1),
    "pemt_cb": (6, 3, 3),
    "pemt_nq": (18, 2, 2),
    "pemt_hotpotqa": (18, 2, 2),
    "pemt_searchqa": (18, 2, 2),
    "pemt_newsqa": (18, 2, 2),
    "pemt_winogrande": (18, 2, 2),
    "pemt_yelp": (18, 2, 2),
    "pemt_scitail": (2, 1, 2),
    "pemt_paws": (2, 2, 2),
    "pemt_wnli": (2, 1, 1),
    "pemt_super_glue_rte": (2, 1, 1),
    "pemt_copa": (2, 1, 1),
    "pemt_snli": (3, 3, 3),
    "pemt_triviaqa": (18, 2, 2),
}


@pytest.fixture(scope="module")
def rendered(tfds_folder):
    """The texts of every task and split as SeqIO makes them, in the order of the files."""
    seqio.set_tfds_data_dir_override(str(tfds_folder))
    found = {}
    for name in TABLE:
        task = seqio.TaskRegistry.get(name)
        for split in task.splits:
            dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
            found[name, split] = list(dataset.as_numpy_iterator())
    seqio.set_tfds_data_dir_override(None)
    return found


def test_the_registry_holds_the_papers_tasks():
    names = {row.name for row in datasets.SOURCES}
    assert names == {f"pemt_{name}" for name in ("mnli", "qnli", "qqp", "sst2", "squad", "record")}

    def tasks_of(mixture):
        return {
            task.name.removeprefix("pemt_")
            for task in seqio.MixtureRegistry.get(f"pemt_{mixture}").tasks
        }

    assert tasks_of("sources") == {"mnli", "qnli", "qqp", "sst2", "squad", "record"}
    assert tasks_of("glue") == {"cola", "mrpc", "rte", "stsb"}
    assert tasks_of("super_glue") == {"multirc", "boolq", "wic", "wsc", "cb"}
    assert tasks_of("mrqa") == {"nq", "hotpotqa", "searchqa", "newsqa"}
    assert tasks_of("others") == {"winogrande", "yelp", "scitail", "paws"}
    assert len(tasks_of("targets")) == 17
    assert {row.name for row in datasets.EXTRAS} == {
        f"pemt_{name}" for name in ("wnli", "super_glue_rte", "copa", "snli", "triviaqa")
    }


# Policy, fields of the original order, metric: those of the authors' code, without their F1 that is
# never computed; SNLI's and TriviaQA's are ours.
IDX, HALVES, HELD_OUT = ("idx",), Halves(), HeldOut()
POLICIES = {
    "pemt_mnli": (Own("train", "validation_mismatched", "validation_matched"), IDX, "accuracy"),
    "pemt_qnli": (HELD_OUT, IDX, "accuracy"),
    "pemt_qqp": (HELD_OUT, IDX, "accuracy, f1 of duplicate"),
    "pemt_sst2": (HELD_OUT, IDX, "accuracy"),
    "pemt_squad": (HELD_OUT, (), "squad"),
    "pemt_record": (HELD_OUT, ("idx/passage", "idx/query"), "record"),
    "pemt_cola": (HALVES, IDX, "matthews"),
    "pemt_mrpc": (HALVES, IDX, "accuracy, f1 of equivalent"),
    "pemt_rte": (HALVES, IDX, "accuracy"),
    "pemt_stsb": (HALVES, IDX, "correlations"),
    "pemt_multirc": (HALVES, ("idx/paragraph", "idx/question", "idx/answer"), "multirc"),
    "pemt_boolq": (HALVES, IDX, "accuracy"),
    "pemt_wic": (HALVES, IDX, "accuracy"),
    "pemt_wsc": (HALVES, IDX, "accuracy"),
    "pemt_cb": (HALVES, IDX, "accuracy, f1 of entailment contradiction neutral"),
    "pemt_nq": (HELD_OUT, (), "squad"),
    "pemt_hotpotqa": (HELD_OUT, (), "squad"),
    "pemt_searchqa": (HELD_OUT, (), "squad"),
    "pemt_newsqa": (HELD_OUT, (), "squad"),
    "pemt_winogrande": (HeldOut(train="train_xl", test="validation"), (), "accuracy"),
    "pemt_yelp": (HeldOut(test="test", at_most=100_000), (), "accuracy"),
    "pemt_scitail": (HALVES, (), "accuracy"),
    "pemt_paws": (Own("train", "validation", "test"), (), "accuracy"),
    "pemt_wnli": (HALVES, IDX, "accuracy"),
    "pemt_super_glue_rte": (HALVES, IDX, "accuracy"),
    "pemt_copa": (HALVES, IDX, "accuracy"),
    "pemt_snli": (Own("train", "validation", "test"), (), "accuracy"),
    "pemt_triviaqa": (HELD_OUT, (), "squad"),
}


def named(metric):
    """The metric of a task in words."""
    if not isinstance(metric, functools.partial):
        return metric.__name__
    (classes,) = metric.keywords.values()
    assert metric.func in (metrics.accuracy_and_f1, metrics.accuracy_and_macro_f1)
    return f"accuracy, f1 of {classes if isinstance(classes, str) else ' '.join(classes)}"


def test_splits_order_and_metric_are_the_papers():
    assert {
        name: (row.splits, row.order, named(row.metric)) for name, row in TABLE.items()
    } == POLICIES
    assert {name: row.group for name, row in TABLE.items() if row.group} == {
        "pemt_multirc": ("idx/paragraph", "idx/question")
    }
    for name, row in TABLE.items():
        for variant in ("", "_4", "_8", "_16", "_32", "_few"):
            source = seqio.TaskRegistry.get(name + variant).source
            assert (source.policy, str(source.data)) == (row.splits, f"tfds {row.data}")
            shots = source.few_shot and source.few_shot.shots
            assert shots == {"": None, "_4": 4, "_8": 8, "_16": 16, "_32": 32, "_few": 8}[variant]


@pytest.mark.parametrize("name", TABLE)
def test_every_split_renders_literally(rendered, name):
    assert {*EXPECTED[name]} == {*SPLITS} and all(EXPECTED[name].values())
    for split, expected in EXPECTED[name].items():
        found = [
            (int(row["row"]), row["inputs"].decode(), row["targets"].decode())
            for row in rendered[name, split]
        ]
        assert [example for example in found if example in expected] == expected, split
        assert len(found) == SIZES[name]["train validation test".split().index(split)]


def test_question_answering_keeps_all_answers(rendered):
    answers = {
        int(row["row"]): [text.decode() for text in row["answers"]]
        for row in rendered["pemt_squad", "test"]
    }
    assert answers == {0: ["end", "The end", "word"], 1: ["x ."]}
    (row,) = rendered["pemt_record", "test"]
    assert [text.decode() for text in row["answers"]] == ["B", "b", "A"]
    assert [text.decode() for text in rendered["pemt_nq", "test"][1]["answers"]] == ["<unk>"]


def test_record_can_have_an_example_per_answer_in_every_split(tiny_data):
    task = seqio.TaskRegistry.get("pemt_record")
    before = {split: task.source.fingerprint(split) for split in task.splits}
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks import targets\n"
        "targets.examples_per_answer.everywhere = True\n"
    )
    try:
        dataset = task.preprocess_precache(task.source.get_dataset("test", shuffle=False))
        found = [(row["targets"], list(row["answers"])) for row in dataset.as_numpy_iterator()]
        assert found == [(answer, [b"B", b"b", b"A"]) for answer in (b"B", b"b", b"A")]
        assert all(task.source.fingerprint(split) != before[split] for split in before)
        assert len(task.source.rows("test")) == 1
    finally:
        gin.clear_config()


def test_no_row_is_in_two_splits(rendered):
    for name, row in TABLE.items():
        for part in set(row.splits.parts.values()):
            splits = [
                {int(example["row"]) for example in rendered[name, split]}
                for split, source in row.splits.parts.items()
                if source == part
            ]
            assert sum(map(len, splits)) == len(set().union(*splits)), name


def test_questions_of_multirc_are_in_one_half_with_all_their_answers(rendered):
    groups = [
        [row["group"].decode() for row in rendered["pemt_multirc", split]]
        for split in ("validation", "test")
    ]
    assert not set(groups[0]) & set(groups[1])
    assert all(groups[half].count(group) == 3 for half in (0, 1) for group in groups[half])


@pytest.mark.parametrize("name", TABLE)
def test_targets_score_100_on_their_own_metric(rendered, name):
    task = seqio.TaskRegistry.get(name)
    examples = [row for split in task.splits for row in rendered[name, split]]
    texts = [row["targets"].decode() for row in examples]
    targets = [
        task.postprocess_fn(text, example=row, is_target=True)
        for text, row in zip(texts, examples, strict=True)
    ]
    predictions = [
        task.postprocess_fn(f" {text} ", example=row, is_target=False)
        for text, row in zip(texts, examples, strict=True)
    ]
    (metric,) = task.predict_metric_fns
    assert metric(targets, predictions) == pytest.approx(
        dict.fromkeys(metric(targets, predictions), 100.0)
    )
    assert metric(targets, ["no label of any task"] * len(targets))["average"] == 0.0


def test_long_inputs_are_cut_and_keep_their_end(tiny_data):
    dataset = seqio.TaskRegistry.get("pemt_boolq").get_dataset(LENGTHS, "train", shuffle=False)
    row = next(dataset.as_numpy_iterator())
    assert len(row["inputs"]) == 64 and row["inputs"][-1] == 1 and row["targets"][-1] == 1


def test_label_words_are_the_names_of_tfds_but_for_the_documented():
    differ = {
        "pemt_yelp": ["1", "2"],
        "pemt_scitail": ["entails", "neutral"],
        "pemt_paws": ["different_meaning", "paraphrase"],
    }
    import tensorflow_datasets as tfds

    for name, row in TABLE.items():
        if isinstance(row.target, Label):
            names = tfds.builder(row.data).info.features["label"].names
            assert names == differ.get(name, list(row.target.words)), name


def test_every_task_has_a_description_of_its_own():
    texts = [description(name) for name in TABLE]
    assert len(set(texts)) == 28 and all(text.endswith(".") for text in texts)
    assert description("pemt_cb_8") == description("pemt_cb_few") == description("pemt_cb")


@pytest.mark.parametrize("name, pack", [("pemt_super_glue", False), ("pemt_cb", True)])
def test_seqio_makes_batches(tiny_data, name, pack):
    dataset = seqio.get_dataset(
        name, LENGTHS, seqio.EncDecFeatureConverter(pack=pack), "train", shuffle=True, seed=0
    )
    rows = list(dataset.as_numpy_iterator())
    assert rows and all(row["encoder_input_tokens"].shape == (64,) for row in rows)
    assert ("encoder_segment_ids" in rows[0]) == pack
    # Each example ends with one </s>; the six of CB are packed into fewer rows.
    ends = sum(int((row["decoder_target_tokens"] == 1).sum()) for row in rows)
    assert len(rows) < ends == 6 if pack else len(rows) == ends


@pytest.mark.parametrize(
    "name, scores",
    [
        ("pemt_multirc", ["f1", "em", "average"]),
        ("pemt_squad", ["em", "f1", "average"]),
        ("pemt_record", ["em", "f1", "average"]),
        ("pemt_cb", ["accuracy", "f1", "average"]),
        ("pemt_stsb", ["pearson", "spearmanr", "average"]),
    ],
)
def test_seqios_evaluator_gives_the_metrics(tiny_data, name, scores):
    evaluator = seqio.Evaluator(
        name,
        seqio.EncDecFeatureConverter(pack=False),
        "test",
        sequence_length=LENGTHS,
        async_compute_metrics=False,
    )

    def predict(dataset, model_feature_shapes=None):
        return [
            (index, row["decoder_target_tokens"].tolist())
            for index, row in dataset.as_numpy_iterator()
        ]

    found, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    assert found.result() == {name: pytest.approx(dict.fromkeys(scores, 100.0))}


def test_our_trainers_data_and_scores_are_seqios(tiny_data, tmp_path):
    split = data.open_split("pemt_record", "train", {"inputs": 64, "targets": 8}, tmp_path)
    assert len(split) == 19
    per_task = {}
    for name in ("pemt_squad", "pemt_mrpc"):
        split = data.open_split(name, "test", {"inputs": 64, "targets": 8}, tmp_path)
        texts = {
            row: split.example(row)["targets_pretokenized"].decode() for row in range(len(split))
        }
        per_task[name] = score(seqio.TaskRegistry.get(name), split, {**texts, 0: "wrong"})
    assert per_task["pemt_squad"] == {"em": 50.0, "f1": 50.0, "average": 50.0}
    assert per_task["pemt_mrpc"] == {"accuracy": 50.0, "f1": 0.0, "average": 50.0}
    # F1 of MRPC has no part in the average, as in the paper.
    assert with_average(per_task)["average"] == 50.0
    assert with_average({"pemt_mrpc": per_task["pemt_mrpc"]})["average"] == 50.0


def test_hosts_share_the_rows_of_a_split(tiny_data):
    task = seqio.TaskRegistry.get("pemt_sst2")
    rows = [
        {
            int(row["row"])
            for row in task.get_dataset(
                LENGTHS, "train", shuffle=False, shard_info=seqio.ShardInfo(index, 2)
            ).as_numpy_iterator()
        }
        for index in (0, 1)
    ]
    assert len(rows[0]) == len(rows[1]) == 9 and len(rows[0] | rows[1]) == 18


def test_absent_data_are_one_sentence_that_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(PemtError) as caught:
        seqio.TaskRegistry.get("pemt_cb").get_dataset(LENGTHS, "train")
    assert str(caught.value) == (
        f"The data of task 'pemt_cb' (super_glue/cb:1.0.2) are not in "
        f"{tmp_path}/super_glue/cb/1.0.2, expected what `python -m pemt_jax.tasks prepare pemt_cb` "
        "puts there."
    )
    with pytest.raises(PemtError, match="prepare pemt_boolq` puts there"):
        seqio.MixtureRegistry.get("pemt_super_glue").get_dataset(LENGTHS, "train")


IMPORTS = """
import logging, os, sys, time, warnings
import absl.logging, seqio, sentencepiece, tqdm
from etils import epath

def state():
    loggers = logging.root.manager.loggerDict
    return {
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "log levels": {n: loggers[n].level for n in ("jax", "orbax", "tensorflow") if n in loggers},
        "verbosity": absl.logging.get_verbosity(),
        "hooks": (sys.excepthook, sys.unraisablehook, list(sys.meta_path)),
        "cache folders": list(seqio.utils.get_global_cache_dirs()),
    }

before, modules, start = state(), set(sys.modules), time.process_time()
import pemt_jax.tasks
seconds = time.process_time() - start
heavy = sum("sklearn" in name for name in set(sys.modules) - modules)
print(seconds, heavy, [name for name, value in state().items() if value != before[name]])
"""


def imported(*arguments, folder):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.split(maxsplit=2)


@pytest.mark.slow
def test_importing_is_quick_and_changes_nothing_but_the_registries(tmp_path):
    seconds, heavy, changed = imported("-c", IMPORTS, folder=tmp_path)
    assert (heavy, changed) == ("0", "[]\n")
    assert float(seconds) < 1.0


@pytest.mark.slow
def test_importing_from_a_package_that_is_run_by_python_m_silences_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(IMPORTS)
    (tmp_path / "mine" / "__main__.py").write_text("")
    _, heavy, changed = imported("-m", "mine", folder=tmp_path)
    assert (heavy, changed) == ("0", "[]\n")


def test_tiny_data_have_the_names_of_the_table():
    assert {row.data for row in TABLE.values()} == set(DATA)
    assert np.all([":" in name for name in DATA])
