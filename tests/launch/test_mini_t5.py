"""The recipe of the mini T5: sentences, embeddings, start model, distillation, probe.

The teacher is a fixed random projection of word counts; nothing needs torch or the network.
"""

import dataclasses
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import jit
from tiny_system import T5, random_base

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import PemtConfig
from pemt_jax.interop.hf import load_hf
from pemt_jax.model.methods import merge
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.parallel.stop_signals import Stopped
from pemt_jax.run_config import ModelConfig
from pemt_jax.runs.build_model import open_base
from pemt_jax.runs.initialization import initial_parameters
from pemt_jax.tasks.demo import sentiment
from pemt_jax.tasks.pretraining.corpus import is_held_out
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

FOLDER = Path(__file__).resolve().parents[2] / "launch" / "mini_t5"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))
WORDS = "good bad film book song dull great poor long short plot music cast voice day".split()
WIDTH = 12  # of the teacher
SIZES = {"train": 90, "held_out": 24}  # the last batch of an epoch is not full


@pytest.fixture(scope="module")
def recipe():
    """The modules of launch/mini_t5 by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


class Teacher:
    """Word counts under a fixed random projection, as unit vectors."""

    sha256 = "fake"

    def __init__(self):
        self.projection = np.random.default_rng(0).normal(size=(len(WORDS), WIDTH))
        self.calls = 0

    def __call__(self, texts):
        self.calls += 1
        counts = np.array([[text.split().count(word) for word in WORDS] for text in texts])
        found = counts @ self.projection + 0.1
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def write_texts(folder: Path, name: str, texts) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.txt"
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A finished distillation of a tiny T5."""
    folder, random = tmp_path_factory.mktemp("mini_t5"), np.random.default_rng(1)
    for name, size in SIZES.items():
        texts = (" ".join(random.choice(WORDS, 5)) for _ in range(size))
        recipe.embed.embed_file(Teacher(), write_texts(folder / "texts", name, texts))
    made = recipe.distillation_run.Distillation(
        random_base(folder / "start"),
        folder / "texts",
        folder / "run",
        steps=40,
        batch_size=16,
        learning_rate=0.05,
        warmup_steps=2,
        decay_steps=10,
        every=10,
    )
    made.run()
    return made


def logged(folder: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "examples_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows if row["kind"] == kind]


def test_distillation_brings_held_out_sentences_nearer_to_the_teacher(run):
    cosines = [row["cosine"] for row in logged(run.folder, "validation")]
    assert len(cosines) == 4 and cosines[-1] == max(cosines) > cosines[0] + 0.05


def test_the_base_has_the_decoder_of_the_start_and_serves_a_run(run):
    (shape, start), (found_shape, found) = load_hf(run.start), load_hf(run.base)
    assert found_shape == shape and found.keys() == start.keys()
    for path, value in start.items():
        assert np.array_equal(value, found[path]) == path.startswith("decoder/"), path
    path = str(run.base)
    base = open_base(ModelConfig(method="decoder", initial_checkpoint_path=path))
    assert base is not None and base.t5 == shape and (run.base / "spiece.model").is_file()


@pytest.mark.slow
def test_a_stopped_distillation_resumes_to_the_same_bits(recipe, run, tmp_path, monkeypatch):
    stopped = dataclasses.replace(run, folder=tmp_path / "run")
    get = recipe.sentence_data.SentenceBatches.__getitem__

    def get_and_ask_to_stop(source, step):
        if step == 17:
            os.kill(os.getpid(), signal.SIGTERM)
        return get(source, step)

    with monkeypatch.context() as patched:
        patched.setattr(recipe.sentence_data.SentenceBatches, "__getitem__", get_and_ask_to_stop)
        with pytest.raises(Stopped):
            stopped.run()
    assert not stopped.base.exists()
    stopped.run(only_export=True)
    part = load_hf(stopped.base)[1]
    stopped.run()
    assert logged(stopped.folder, "validation") == logged(run.folder, "validation")
    file = "model.safetensors"
    assert (stopped.base / file).read_bytes() == (run.base / file).read_bytes()
    path = "token_embedder/embedding"
    assert not np.array_equal(part[path], load_hf(run.base)[1][path])


def test_other_sentences_are_another_run(run, tmp_path):
    with pytest.raises(UsageError, match="damping is 0.2, expected 1.0"):
        dataclasses.replace(run, damping=1.0).run()
    with pytest.raises(PemtError, match=r"train.txt has 1 parts of embed.py, expected 2"):
        dataclasses.replace(run, parts=2).run()
    empty = write_texts(tmp_path / "texts", "train", ["a film"])
    with pytest.raises(PemtError, match="has 0 parts of embed.py, expected at least one"):
        dataclasses.replace(run, texts=empty.parent).run()


def test_the_loss_is_that_of_the_sentences_alone(recipe):
    """Rows that fill the last batch of an epoch do not count."""
    data, model = recipe.sentence_data, PemtModel(T5, PemtConfig())
    split = data.tokenized(["good film", "a dull book", "great music"])
    vectors = np.random.default_rng(2).normal(size=(3, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    source = data.SentenceBatches(split, vectors, 5, 0, (8,))
    batch = source[0]
    assert batch["encoder_input_tokens"].shape == (5, 8) and not batch["teacher"][3:].any()
    flat, _ = initial_parameters(model, 0)
    trainable, frozen = recipe.distillation.starting_parameters(flat, 0.2, WIDTH, 0)
    params = merge(trainable, frozen)
    means_BD = jit(lambda p, b: recipe.distillation.mean_output(model, p, b))(params, batch)
    z_BK = np.asarray(means_BD, np.float64)[:3] @ params["distillation"]["head"]
    z_BK /= np.linalg.norm(z_BK, axis=1, keepdims=True)
    cosine_BB = z_BK @ batch["teacher"][:3].T
    which_B = np.log(np.exp(20 * cosine_BB).sum(axis=1)) - 20 * np.diagonal(cosine_BB)
    expected = (1 - np.diagonal(cosine_BB) + 0.05 * which_B).mean()
    loss, metrics = jit(recipe.distillation.make_loss_fn(model))(params, batch, None)
    assert np.isclose(loss, expected, atol=1e-5)
    assert np.isclose(metrics["cosine"].compute(), np.diagonal(cosine_BB).mean(), atol=1e-5)


def test_the_start_has_the_projected_vectors_of_the_pieces(recipe, tmp_path):
    texts, random = tmp_path / "texts", np.random.default_rng(0)
    pieces = (random.normal(size=(8000, WIDTH)) * np.arange(1, WIDTH + 1)).astype(np.float16)
    (write_texts(texts, "pieces", ["x"]).with_suffix("")).mkdir()
    np.save(texts / "pieces" / "0000000.npy", pieces)
    shape = {name: getattr(T5, name) for name in ("num_heads", "head_dim", "mlp_dim")}
    shape |= {"emb_dim": 8, "num_encoder_layers": 1, "num_decoder_layers": 1}
    recipe.make_start.make(tmp_path / "start", texts, 0, **shape)
    t5, params = load_hf(tmp_path / "start")
    assert (t5.emb_dim, t5.vocab_size) == (8, DEFAULT_VOCABULARY.vocab_size)
    found = params["token_embedder/embedding"][3:8000]
    assert np.isclose(np.mean(found**2), 1, rtol=1e-5)
    # Principal components by the eigenvectors of the covariance; signs are free.
    centred = pieces[3:].astype(np.float64) - pieces[3:].astype(np.float64).mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(centred.T, bias=True))
    expected = (centred @ axes[:, ::-1][:, :8]) / values[::-1][:8] ** 0.25
    expected /= np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)
    with pytest.raises(UsageError, match="Found --emb_dim 16, expected at most the teacher's 12"):
        recipe.make_start.make(tmp_path / "wide", texts, 0, **shape | {"emb_dim": 16})


def test_sentences_are_those_of_the_corpus_and_the_sources(recipe, tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "corpus"
    firsts = [f"This is sentence number {i}." for i in range(999)]
    paragraphs = [f"{first} Is this one repeated? Too short." for first in firsts]
    write_texts(corpus, "prose", paragraphs)
    write_texts(corpus, "notes", ["One note is of these words.", "Another note is of these words."])
    monkeypatch.setenv("PEMT_JAX_CORPUS", str(corpus))
    monkeypatch.setattr(sentiment, "source_texts", lambda: ["a  source"])
    recipe.make_sentences.make(tmp_path / "texts", {"notes": 1}, 10_000, held_out=3)
    read = lambda name: recipe.sentence_data.read_texts(tmp_path / "texts" / name)  # noqa: E731
    train, held_out, pieces = map(read, ("train.txt", "held_out.txt", "pieces.txt"))
    held = {first for first, text in zip(firsts, paragraphs, strict=True) if is_held_out(text)}
    assert len(held_out) == 3 and set(held_out) < held
    assert set(train) & set(firsts) == set(firsts) - held
    rest = sorted(set(train) - set(firsts))
    assert len(rest) == 3 and {"Is this one repeated?", "a source"} < set(rest)
    assert (
        len(train) == len(set(train))
        and len(pieces) == 8000
        and not {"", "▁"} & set("".join(pieces))
    )
    assert "notes.txt: 1 of 2 sentences" in capsys.readouterr().out


def test_embedding_goes_on_where_it_was_stopped(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe.embed, "PART", 4)
    file = write_texts(tmp_path / "texts", "train", [f"good {word}" for word in WORDS[:10]])

    class Stopping(Teacher):
        def __call__(self, texts):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().__call__(texts)

    with pytest.raises(KeyboardInterrupt):
        recipe.embed.embed_file(Stopping(), file)
    assert len(recipe.sentence_data.read_embeddings(file)) == 8
    teacher = Teacher()
    recipe.embed.embed_file(teacher, file)
    assert teacher.calls == 1
    expected = teacher(recipe.sentence_data.read_texts(file))
    np.testing.assert_array_equal(recipe.sentence_data.read_embeddings(file), expected)
    np.testing.assert_array_equal(recipe.sentence_data.read_embeddings(file, 1), expected[:4])
    write_texts(tmp_path / "texts", "train", ["another text"])
    with pytest.raises(SystemExit, match="is of another text or teacher"):
        recipe.embed.embed_file(teacher, file)


def test_the_probe_reads_labels_off_features_and_no_test_rows(recipe, monkeypatch):
    def rows(domain, split):
        assert split in ("train", "validation")
        labels = [("negative", "positive")[i % 2] for i in range(80)]
        return [(f"{domain}/{split}/{i}", f"{label} {i}", label) for i, label in enumerate(labels)]

    monkeypatch.setattr(sentiment, "sentiment", rows)
    noise = np.random.default_rng(0)
    label = lambda texts: np.array([[text.startswith("p"), 0.0] for text in texts])  # noqa: E731
    drawn = lambda texts: noise.normal(size=(len(texts), 2))  # noqa: E731
    names = {"movies", "tweets", "nyt", "sources", "32_per_label", "target"}
    assert recipe.probe.scores(label) == dict.fromkeys(names, 1.0)
    assert all(0.3 < area < 0.7 for area in recipe.probe.scores(drawn).values())
