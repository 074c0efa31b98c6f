"""The expert library: by name, in a named order, exact when stacked, and honest about damage."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import TINY_BASE
from hypothesis import given, settings
from hypothesis import strategies as st

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import PemtConfig
from pemt_jax.library import artefact
from pemt_jax.library import expert as library

LAYER = "encoder/layers_0"


def stacked(experts):
    """(bank, prompt lengths, names)."""
    options = PemtConfig(prompt_length=1, **library.bank_options(experts))
    bank = library.stack_experts(experts, options)
    return bank, options.source_prompt_lengths, options.expert_names


def make_expert(name, arrays, base=TINY_BASE):
    prompt, lora = library.take_apart(name, arrays)
    return library.Expert(
        name=name,
        task=name,
        prompt_text="",
        base_fingerprint=base,
        rank=max(a.shape[1] for a, _ in lora.values()),
        prompt=prompt,
        lora=lora,
        metrics={},
        versions={},
        sha256="",
    )


def test_an_expert_comes_back(save_expert, expert_arrays):
    folder = save_expert("movies", seed=1)
    expert = library.load_expert(folder, "movies", TINY_BASE)
    arrays = expert_arrays(seed=1)
    assert (expert.name, expert.task, expert.prompt_text) == ("movies", "movies_task", "the movies")
    assert (expert.rank, expert.features, expert.metrics) == (3, 6, {"accuracy": 0.75})
    assert expert.base_fingerprint == TINY_BASE and len(expert.sha256) == 64
    np.testing.assert_array_equal(expert.prompt, arrays["prompt/embedding"])
    assert list(expert.lora) == ["decoder/layers_0/mlp/wo", "encoder/layers_0/mlp/wo"]
    np.testing.assert_array_equal(
        expert.lora[f"{LAYER}/mlp/wo"][0], arrays[f"{LAYER}/mlp/expert/lora_a"]
    )
    np.testing.assert_array_equal(
        expert.lora[f"{LAYER}/mlp/wo"][1], arrays[f"{LAYER}/mlp/expert/lora_b"]
    )


def test_experts_are_stacked_in_the_order_named(save_expert, expert_arrays):
    for seed, name in enumerate(("movies", "nyt", "tweets")):
        folder = save_expert(name, seed=seed, P=seed + 2)
    order = ("tweets", "movies")
    bank, lengths, names = stacked([library.load_expert(folder, name) for name in order])
    assert (names, lengths) == (order, (4, 2))
    assert bank[f"{LAYER}/mlp/experts/lora_a"].shape == (10, 2, 3)
    assert bank[f"{LAYER}/mlp/experts/lora_b"].shape == (2, 3, 6)
    for i, seed in enumerate((2, 0)):
        arrays = expert_arrays(seed=seed, P=seed + 2)
        for path in bank:
            if path != "source_prompts/embedding":
                source = path.replace("experts", "expert")
                np.testing.assert_array_equal(
                    np.take(bank[path], i, axis=int(path.endswith("lora_a"))), arrays[source]
                )
        prompts_PD = bank["source_prompts/embedding"][i]
        np.testing.assert_array_equal(prompts_PD[: lengths[i]], arrays["prompt/embedding"])
        assert not prompts_PD[lengths[i] :].any()


@settings(max_examples=15, deadline=None)
@given(ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_stacking_different_ranks_is_exact(ranks, seed):
    rng = np.random.default_rng(seed)
    hidden_LF = rng.integers(-8, 9, (3, 7)).astype(np.float32)
    experts = [
        make_expert(
            f"e{i}",
            {
                "prompt/embedding": np.ones((i, 4), np.float32),
                f"{LAYER}/mlp/expert/lora_a": rng.integers(-8, 9, (7, rank)).astype(np.float32),
                f"{LAYER}/mlp/expert/lora_b": rng.integers(-8, 9, (rank, 4)).astype(np.float32),
            },
        )
        for i, rank in enumerate(ranks)
    ]
    bank, lengths, _ = stacked(experts)
    assert lengths == tuple(range(len(ranks)))
    for i, expert in enumerate(experts):
        a_FR, b_RD = expert.lora[f"{LAYER}/mlp/wo"]
        padded = (
            hidden_LF
            @ bank[f"{LAYER}/mlp/experts/lora_a"][:, i]
            @ bank[f"{LAYER}/mlp/experts/lora_b"][i]
        )
        np.testing.assert_array_equal(padded, hidden_LF @ a_FR @ b_RD)  # integers: exact sums


def test_a_layer_that_an_expert_lacks_is_zero(expert_arrays):
    whole, half = (
        make_expert("w", expert_arrays(0)),
        make_expert("h", expert_arrays(1, layers=(LAYER,))),
    )
    bank, _, _ = stacked([whole, half])
    assert bank["decoder/layers_0/mlp/experts/lora_a"][:, 0].any()
    assert not bank["decoder/layers_0/mlp/experts/lora_a"][:, 1].any()
    assert not bank["decoder/layers_0/mlp/experts/lora_b"][1].any()


def test_experts_that_do_not_fit_together_are_refused(expert_arrays):
    one = make_expert("one", expert_arrays())
    with pytest.raises(UsageError, match="No experts"):
        stacked([])
    with pytest.raises(UsageError, match="'one' was named twice"):
        stacked([one, one])
    with pytest.raises(PemtError, match="'two' depends on the base cccccccccccc, .*bbbbbbbbbbbb"):
        stacked([one, make_expert("two", expert_arrays(), base="c" * 64)])
    with pytest.raises(
        PemtError, match="'two' has widths 12 and 6 beside .*, expected 10 and 6 as in 'one'"
    ):
        stacked([one, make_expert("two", expert_arrays(F=12))])


def test_unknown_expert_has_a_nearest_name(save_expert):
    folder = save_expert("vader_movies")
    with pytest.raises(UsageError, match=r"'vader_movie' .*\(nearest: 'vader_movies'\)"):
        library.load_expert(folder, "vader_movie")
    with pytest.raises(UsageError, match="which holds none"):
        library.load_expert(folder / "nowhere", "vader_movies")


@pytest.mark.parametrize("name", ["../vader_movies", "/etc", ".", "a/b"])
def test_a_name_cannot_leave_the_library(save_expert, expert_arrays, tmp_path, name):
    folder = save_expert("vader_movies")
    with pytest.raises(UsageError, match="is no name"):
        library.load_expert(folder, name)
    with pytest.raises(UsageError, match="is no name"):
        library.save_expert(
            folder / "x",
            name,
            expert_arrays(),
            artefact.Card(
                kind="expert",
                method="pemt_source",
                task="t",
                description="",
                base_fingerprint=TINY_BASE,
            ),
        )
    assert os.listdir(tmp_path) == ["library"]


def test_another_base_and_a_target_are_refused(save_expert):
    folder = save_expert("movies")
    with pytest.raises(PemtError, match="expected the base of this run, cccccccccccc"):
        library.load_expert(folder, "movies", "c" * 64)
    artefact.write_artefact(
        folder / "target",
        {"x": np.zeros(2)},
        artefact.Card(kind="target", method="adapter", task="t", base_fingerprint=TINY_BASE),
    )
    with pytest.raises(PemtError, match="target artefact, expected an expert"):
        library.load_expert(folder, "target")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.update({"encoder/layers_0/mlp/gate/kernel": np.zeros((2, 2))}), "gate/kernel"),
        (lambda a: a.pop("prompt/embedding"), "incomplete"),
        (lambda a: a.pop(f"{LAYER}/mlp/expert/lora_b"), "incomplete"),
        (lambda a: a.update({f"{LAYER}/mlp/expert/lora_b": np.zeros((4, 6))}), r"lora_b \(4, 6\)"),
        (
            lambda a: a.update({f"{LAYER}/mlp/expert/lora_a": np.zeros((11, 3))}),
            r"lora_a \(11, 3\)",
        ),
        (lambda a: a.update({"prompt/embedding": np.zeros((4, 5))}), r"prompt \(4, 5\)"),
        (lambda a: a.update({"prompt/embedding": np.zeros(6)}), r"prompt \(6,\)"),
    ],
)
def test_what_is_no_expert_is_not_saved(tmp_path, expert_arrays, change, message):
    arrays = expert_arrays()
    change(arrays)
    with pytest.raises(PemtError, match=message):
        library.save_expert(
            tmp_path,
            "bad",
            arrays,
            artefact.Card(
                kind="expert",
                method="pemt_source",
                task="t",
                description="",
                base_fingerprint=TINY_BASE,
            ),
        )
    assert os.listdir(tmp_path) == []


@pytest.fixture
def command(tmp_path):
    """Run `python -m pemt_jax.library` in tmp_path; return exit code, output, error."""

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "pemt_jax.library", *arguments],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env={k: v for k, v in os.environ.items() if k != "PEMT_JAX_LIBRARY"} | environment,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_list_is_a_table_with_one_line_an_expert(save_expert, command):
    save_expert("nyt")
    folder = save_expert("vader_movies", seed=1)
    code, output, error = command("list", "--library", str(folder))
    assert (code, error) == (0, "")
    heading, *rows = output.splitlines()
    assert heading.split() == ["EXPERT", "TASK", "RANK", "BASE", "METRICS", "MB"]
    assert [row.split() for row in rows] == [
        ["nyt", "nyt_task", "3", "tiny", "accuracy", "0.75", "0.0"],
        ["vader_movies", "vader_movies_task", "3", "tiny", "accuracy", "0.75", "0.0"],
    ]
    column = heading.index("TASK")
    assert all(row[column - 1] == " " and row[column] != " " for row in rows)


def test_the_folder_comes_from_flag_environment_or_default(save_expert, command, tmp_path):
    folder = save_expert("nyt")
    assert "nyt" in command("list", PEMT_JAX_LIBRARY=str(folder))[1]
    code, output, error = command("list")
    assert (code, output) == (2, "") and "runs/library" in error and error.count("\n") == 1
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    folder.rename(tmp_path / "runs" / "demo" / "library")
    code, output, error = command("list")
    assert code == 2 and error.endswith("or another --library (found: runs/demo/library).\n")
    (tmp_path / "runs" / "demo" / "library").rename(tmp_path / "runs" / "library")
    assert "nyt" in command("list")[1]


def test_show_says_what_the_card_says(save_expert, command):
    folder = save_expert("nyt")
    code, output, error = command("show", "nyt", "--library", str(folder))
    assert (code, error) == (0, "")
    for part in (
        "nyt_task",
        "the nyt",
        "rank 3, model width 6, 2 linear layers, 4 prompt rows",
        "decoder/mlp/wo, encoder/mlp/wo",
        TINY_BASE,
        "accuracy",
        "0.75",
        "jax",
        "config rank",
    ):
        assert part in output


@pytest.mark.parametrize("linears", ["wo", "q,v"])
def test_verify_finds_a_flipped_byte_and_exits_with_1(save_expert, expert_arrays, command, linears):
    arrays = expert_arrays()
    if linears == "q,v":
        arrays = {
            path.replace("mlp/expert", f"attention/{name}_expert"): array
            for path, array in arrays.items()
            for name in ("query", "value")
            if not path.startswith("decoder") and not path.endswith("lora_a")
        } | {
            f"{LAYER}/attention/{name}_expert/lora_a": np.ones((6, 3))
            for name in ("query", "value")
        }
    for name in ("movies", "nyt"):
        folder = save_expert(name, arrays=arrays)
    code, output, error = command("verify", "--library", str(folder))
    assert (code, error, output.count("  ok  sha256 ")) == (0, "", 2)
    path = folder / "movies" / "weights.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    code, output, error = command("verify", "--library", str(folder))
    assert code == 1 and output.startswith("nyt  ok") and output.count("\n") == 1
    assert error.startswith("error: ") and "movies" in error and error.count("\n") == 1
    assert command("verify", "nyt", "--library", str(folder))[0] == 0


def test_list_goes_on_past_a_damaged_card(save_expert, command):
    for name in ("movies", "nyt"):
        folder = save_expert(name)
    (folder / "movies" / "card.json").write_text("{")
    code, output, error = command("list", "--library", str(folder))
    assert code == 1 and "nyt_task" in output and "movies/card.json" in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("verfy",), "(nearest: 'verify')"),
        (("show", "nty"), "(nearest: 'nyt')"),
        (("show",), "expected one of nyt"),
        (("verify", "nty"), "(nearest: 'nyt')"),
        (("list", "../x"), "is no name"),
    ],
)
def test_a_wrong_word_is_one_sentence_and_exit_code_2(save_expert, command, arguments, message):
    folder = save_expert("nyt")
    code, _, error = command(*arguments, "--library", str(folder))
    assert code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_an_empty_library_is_no_error(tmp_path, command):
    assert command("list", "--library", str(tmp_path)) == (0, f"no experts in {tmp_path}\n", "")
