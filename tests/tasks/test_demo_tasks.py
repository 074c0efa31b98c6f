"""The demo's data and tasks, on a tiny hand-written archive; no network."""

import collections
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import seqio

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data import token_cache as data
from pemt_jax.tasks import description
from pemt_jax.tasks.demo import sentiment as demo
from pemt_jax.tasks.demo import vader
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

DEMO_TASKS = ["vader_movies", "vader_tweets", "vader_nyt", "vader_domain", "vader_amazon"]

# Lines as in the archive: CRLF, no quoting, no end of line after the last row.
MOVIES = (
    "1\t2.26\tThe ''Rock'' is \"destined\" to be great.\r\n"
    "2\t-0.6\tToo tepid\r\n"
    "3\t0.4\tA film.\r\n"
    "4\t-3.0\tA dull\tand\x85dull film\r\n"
    "5\t1.5\tFun\r\n"
    "6\t-1.5\tNo fun"
)


def clear_caches():
    vader.rows.cache_clear()
    vader._all_splits.cache_clear()


def tar_gz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def small_archive(tmp_path, monkeypatch):
    """Put an archive of the given files (domain -> text) into an empty cache folder."""

    def make(texts, test=4, validation=2):
        inner = tar_gz(
            {
                f"hutto_ICWSM_2014/{vader.DOMAINS[name].file}": text.encode()
                for name, text in texts.items()
            }
        )
        content = tar_gz({vader.INNER_ARCHIVE: inner})
        monkeypatch.setattr(vader, "ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(
            vader,
            "DOMAINS",
            {
                name: vader.Domain(vader.DOMAINS[name].file, text.count("\n") + 1, test, validation)
                for name, text in texts.items()
            },
        )
        (tmp_path / vader.ARCHIVE).write_bytes(content)

    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path))
    clear_caches()
    yield make
    clear_caches()


def many_rows(seed, groups=None):
    """Sixty rows of different texts, some of them neutral, in groups or one by one."""
    rng = np.random.default_rng(seed)
    ratings = np.round(rng.uniform(-4, 4, 60), 2)
    names = [f"{i // 5}_{i % 5}" if groups else str(i) for i in range(60)]
    return "\r\n".join(
        f"{name}\t{rating}\tfile {seed} text {i}"
        for i, (name, rating) in enumerate(zip(names, ratings, strict=True))
    )


@pytest.fixture
def four_domains(small_archive):
    small_archive(
        {
            "movies": many_rows(0),
            "tweets": many_rows(1),
            "nyt": many_rows(2, True),
            "amazon": many_rows(3, True),
        }
    )


def test_rows_are_read_literally():
    rows = vader.parse("movies", MOVIES.encode() + b"\r\n7\t-1.0\tcaf\xe9\r\n8\t1.0\tcaf\xc3\xa9")
    assert [(row.id, row.rating, row.text) for row in rows] == [
        ("movies/1", 2.26, "The ''Rock'' is \"destined\" to be great."),
        ("movies/2", -0.6, "Too tepid"),
        ("movies/3", 0.4, "A film."),
        ("movies/4", -3.0, "A dull\tand\x85dull film"),
        ("movies/5", 1.5, "Fun"),
        ("movies/6", -1.5, "No fun"),
        ("movies/7", -1.0, "caf\u00e9"),
        ("movies/8", 1.0, "caf\u00e9"),
    ]
    assert [row.neutral for row in rows[:4]] == [False, False, True, False]
    assert [row.label for row in rows[:2]] == ["positive", "negative"]
    assert [row.group for row in vader.parse("nyt", b"12_3\t1\ta\r\n12_10\t1\tb")] == [
        "nyt/12",
        "nyt/12",
    ]


def test_a_task_gives_literal_examples(small_archive):
    small_archive({"movies": MOVIES}, test=2, validation=1)
    task = seqio.TaskRegistry.get("vader_movies")
    found = {}
    for split in ("train", "validation", "test"):
        dataset = task.get_dataset({"inputs": 32, "targets": 4}, split, shuffle=False)
        found[split] = [
            (row["inputs_pretokenized"].decode(), row["targets_pretokenized"].decode())
            for row in dataset.as_numpy_iterator()
        ]
    assert [len(found[split]) for split in ("train", "validation", "test")] == [2, 1, 2]
    assert sorted(sum(found.values(), [])) == [
        ("sentence: A dull\tand\x85dull film", "negative"),
        ("sentence: Fun", "positive"),
        ("sentence: No fun", "negative"),
        ("sentence: The ''Rock'' is \"destined\" to be great.", "positive"),
        ("sentence: Too tepid", "negative"),
    ]


def test_groups_are_not_torn_and_sizes_count_rated_rows(four_domains):
    for name in ("nyt", "amazon"):
        groups = {
            split: {row.group for row in vader.split_rows(name, split, neutral=True)}
            for split in vader.SPLITS
        }
        assert not groups["test"] & groups["train"]
        assert not groups["validation"] & (groups["train"] | groups["test"])
        assert sum(map(len, groups.values())) == 12
        assert 4 <= len(vader.split_rows(name, "test")) <= 4 + 4
        assert 2 <= len(vader.split_rows(name, "validation")) <= 2 + 4
    for name in ("movies", "tweets"):
        sizes = [len(vader.split_rows(name, split, neutral=True)) for split in vader.SPLITS]
        assert sum(sizes) == 60
        assert len(vader.split_rows(name, "test")) == 4


def test_a_repeated_text_stays_in_the_first_split_only():
    def row(number, text):
        return vader.Row(f"a/{number}", f"a/{number}", 1.0, text)

    kept = vader.without_repeats(
        {
            "movies": {
                "test": [row(1, "It's good!")],
                "validation": [row(2, "Fine.")],
                "train": [row(3, "its GOOD"), row(4, "it s good"), row(5, "!")],
            },
            "tweets": {
                "test": [row(6, "FINE")],
                "validation": [row(7, "new"), row(8, "new")],
                "train": [row(9, "New"), row(10, "?"), row(11, "old")],
            },
        }
    )
    ids = {
        name: {split: [row.id for row in rows] for split, rows in parts.items()}
        for name, parts in kept.items()
    }
    assert ids == {
        "movies": {"test": ["a/1"], "validation": [], "train": ["a/3", "a/5"]},
        "tweets": {"test": ["a/6"], "validation": ["a/7", "a/8"], "train": ["a/10", "a/11"]},
    }


def test_no_source_row_is_in_any_test(four_domains):
    tests = {row.key for name in vader.DOMAINS for row in vader.split_rows(name, "test", True)}
    for name in vader.DOMAINS:
        assert not tests & {row.key for row in vader.split_rows(name, "train", neutral=True)}
    domain_ids = {row[0] for row in demo.domain("train")}
    assert not domain_ids & {
        row.id for name in vader.DOMAINS for row in vader.split_rows(name, "test", True)
    }


def test_domain_rows_are_balanced_and_hold_neutral_sentences(four_domains):
    rows = demo.domain("train")
    counts = collections.Counter(label for _, _, label in rows)
    assert set(counts) == {"movie", "tweet", "newspaper"}
    assert len(set(counts.values())) == 1
    neutral = {
        row.id
        for name in ("movies", "tweets", "nyt")
        for row in vader.split_rows(name, "train", True)
        if row.neutral
    }
    assert neutral & {row[0] for row in rows}
    assert all(text.startswith("text: ") for _, text, _ in rows)


def test_few_shot_rows_are_balanced_nested_and_differ_by_seed(four_domains):
    full = demo.sentiment("amazon", "train")
    draws = {}
    for seed in demo.SEEDS:
        few, more = (demo.few_shot("amazon", "train", shots, seed) for shots in (3, 6))
        assert collections.Counter(row[2] for row in few) == {"negative": 3, "positive": 3}
        assert set(few) < set(more) <= set(full)
        draws[seed] = few
    assert len(set(map(tuple, draws.values()))) == len(demo.SEEDS)
    assert demo.few_shot("amazon", "test", 3, 0) == demo.sentiment("amazon", "test")


def test_few_shot_tasks_are_registered_for_every_seed(four_domains):
    lengths = {"inputs": 32, "targets": 4}

    def ids(name):
        dataset = seqio.TaskRegistry.get(name).get_dataset(lengths, "train", shuffle=False)
        return [row["id"] for row in dataset.as_numpy_iterator()]

    assert ids("vader_amazon_8") == ids("vader_amazon_8_seed0") != ids("vader_amazon_8_seed4")
    assert len(ids("vader_amazon_8")) == 16
    assert seqio.TaskRegistry.get("vader_amazon_32_seed4").splits
    assert len(ids("vader_movies_8_seed1")) > 0
    texts = demo.few_shot("domain", "train", 1, 3)
    assert [row[2] for row in texts] == ["movie", "newspaper", "tweet"]


def test_mixtures_hold_the_sources_and_never_the_target(four_domains):
    sources = seqio.MixtureRegistry.get("vader_sources")
    rates = {task.name: sources.get_rate(task) for task in sources.tasks}
    assert rates == {
        "vader_movies": len(demo.sentiment("movies", "train")),
        "vader_tweets": len(demo.sentiment("tweets", "train")),
        "vader_nyt": len(demo.sentiment("nyt", "train")),
        "vader_domain": len(demo.domain("train")),
    }
    dataset = sources.get_dataset(
        {"inputs": 32, "targets": 4}, "train", shuffle=True, seed=0, num_epochs=1
    )
    assert len(list(dataset.as_numpy_iterator())) > 100
    pretraining = seqio.MixtureRegistry.get("mini_t5_pretrain")
    rates = {task.name: pretraining.get_rate(task) for task in pretraining.tasks}
    assert rates == {
        "span_corruption": 0.80,
        "vader_texts_pretrain": 0.06,
        "vader_domain_pretrain": 0.06,
        "vader_movies_pretrain": 0.05,
        "vader_tweets_pretrain": 0.015,
        "vader_nyt_pretrain": 0.015,
    }


def test_pretraining_reads_the_sources_training_sentences_and_no_rating(four_domains):
    texts = demo.source_texts()
    expected = [
        row.text
        for name in ("movies", "tweets", "nyt")
        for row in vader.split_rows(name, "train", neutral=True)
    ]
    assert sorted(texts) == sorted(expected) and texts != expected
    task = seqio.TaskRegistry.get("vader_texts_pretrain")
    assert list(task.splits) == ["train"]
    split = data.open_split("vader_texts_pretrain", "train", {"inputs": 32, "targets": 16})
    before_noise = split.columns["targets"].values.tolist()
    assert before_noise == [token for text in texts for token in DEFAULT_VOCABULARY.encode(text)]


def test_pretraining_answers_sentiment_questions_at_random(four_domains):
    rows = demo.answered_at_random("movies", "train")
    asked = demo.sentiment("movies", "train")
    prompt = description("vader_movies")
    assert [(a[0], f"{prompt} {a[1]}") for a in asked] == [row[:2] for row in rows]
    assert {row[2] for row in rows} == {"negative", "positive"}
    assert [row[2] for row in rows] != [a[2] for a in asked]


def test_pretraining_tells_domains_apart_on_training_rows_only(four_domains):
    task = seqio.TaskRegistry.get("vader_domain_pretrain")
    assert list(task.splits) == ["train"]
    dataset = task.get_dataset({"inputs": 32, "targets": 4}, "train", shuffle=False)
    rows = [
        (row["inputs_pretokenized"].decode(), row["targets_pretokenized"].decode())
        for row in dataset.as_numpy_iterator()
    ]
    assert rows == [(f"domain: {inputs}", target) for _, inputs, target in demo.domain("train")]


def test_other_data_make_another_cache(small_archive, tmp_path):
    lengths = {"inputs": 32, "targets": 4}
    small_archive({"movies": many_rows(0)})
    first = data.open_split("vader_movies", "train", lengths, tmp_path / "tokens")
    clear_caches()
    small_archive({"movies": many_rows(1)})
    second = data.open_split("vader_movies", "train", lengths, tmp_path / "tokens")
    assert first.sha256 != second.sha256


def test_accuracy_is_in_percent_and_compares_stripped_texts():
    for name in (*DEMO_TASKS, "vader_amazon_8_seed3"):
        task = seqio.TaskRegistry.get(name)
        (metric,) = task.metric_fns
        targets = [
            task.postprocess_fn(text, example={}, is_target=True)
            for text in ("positive", "negative", "negative")
        ]
        predictions = [
            task.postprocess_fn(text, example={}, is_target=False)
            for text in (" positive", "", "negative ")
        ]
        score = pytest.approx(200 / 3)
        assert metric(targets, predictions) == {"accuracy": score, "average": score}, name


def test_the_demos_summary_has_accuracies_from_0_to_1(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "launch"))
    import experiment

    percent = {"accuracy": 62.5, "average": 62.5, "gate/movies": 0.25}
    assert experiment.accuracy(percent) == 0.625
    assert experiment.gates(percent) == {"movies": 0.25}


def test_every_prompt_has_8_to_20_tokens():
    for name in [*DEMO_TASKS, "vader_amazon_8_seed3", "vader_sources"]:
        assert 8 <= len(DEFAULT_VOCABULARY.encode(description(name))) + 1 <= 20, name
    with pytest.raises(UsageError, match="no task or mixture 'vader_movie' .*'vader_movies'"):
        description("vader_movie")


def test_a_wrong_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path))
    (tmp_path / vader.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(PemtError, match=f"{vader.ARCHIVE} has sha256 .* was expected; remove"):
        vader.fetch()
    assert (tmp_path / vader.ARCHIVE).read_bytes() == b"something else"


def test_a_file_of_another_number_of_rows_is_refused(small_archive, monkeypatch):
    small_archive({"movies": MOVIES})
    domain = vader.DOMAINS["movies"]
    monkeypatch.setitem(vader.DOMAINS, "movies", vader.Domain(domain.file, 7, 1, 1))
    with pytest.raises(PemtError, match="has 6 rows but 7 were expected"):
        vader.rows("movies")


@pytest.mark.parametrize("offered", ["nothing", "another archive of that name"])
def test_without_network_a_sentence_says_which_file_to_put_where(tmp_path, monkeypatch, offered):
    links = tmp_path / "links"
    links.mkdir()
    if offered != "nothing":
        (links / vader.ARCHIVE).write_bytes(tar_gz({"vaderSentiment-3.3.2/setup.py": b"oops"}))
    cache = tmp_path / "cache"
    monkeypatch.setenv("PEMT_JAX_CACHE", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    with pytest.raises(PemtError) as caught:
        vader.fetch()
    sentence = str(caught.value)
    assert f"put the file {vader.ARCHIVE} (PyPI, source distribution" in sentence
    assert sentence.endswith(f"into {cache}") and "\n" not in sentence
    assert list(cache.iterdir()) == []


def test_the_real_archive_gives_the_documented_sizes():
    if not (vader.cache_folder() / vader.ARCHIVE).exists():
        pytest.skip("the demo data are not in the cache")
    clear_caches()
    sizes = {
        name: [len(vader.split_rows(name, split)) for split in vader.SPLITS]
        for name in vader.DOMAINS
    }
    assert sizes == {
        "movies": [1000, 500, 8571],
        "tweets": [400, 296, 2625],
        "nyt": [400, 304, 2263],
        "amazon": [1200, 330, 1449],
    }
    tests = {row.key for name in vader.DOMAINS for row in vader.split_rows(name, "test", True)}
    seen = {
        row.key
        for name in vader.DOMAINS
        for split in ("train", "validation")
        for row in vader.split_rows(name, split, True)
    }
    assert not tests & seen
