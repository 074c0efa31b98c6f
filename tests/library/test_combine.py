"""Experts made of experts: PEFT's numbers, honest cards, refusals that say why.

`data/combinations.npz` holds what PEFT makes of random pairs (data/make_combinations_fixture.py);
where PEFT is installed the test marked `parity` asks it itself.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_BASE

from pemt_jax.cli.library_command import main
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import PemtConfig
from pemt_jax.library import expert as library
from pemt_jax.library.artefact import Card
from pemt_jax.library.combination import METHODS, OF_PRODUCTS, Combination
from pemt_jax.library.combine import combine_experts, product_norm, random_expert
from pemt_jax.library.linears import flat_lora
from pemt_jax.library.transfer import check_expert_folder

sys.path.append(str(Path(__file__).parents[1] / "data"))
import make_combinations_fixture as fixture  # noqa: E402

QUERY, WO = fixture.QUERY, fixture.WO


@pytest.fixture(scope="module")
def pairs():
    return fixture.random_pairs()


@pytest.fixture
def folder(tmp_path, pairs):
    """A library with the fixture's experts a, b and c, whose prompts differ in length."""
    for number, (name, lora) in enumerate(zip("abc", pairs, strict=True)):
        prompt = np.full((3 + number, 8), number, np.float32)
        facts = {"base": "/t5", "model_dir": "/runs/it", "pemt": {"expert_rank": 3}}
        library.save_expert(
            tmp_path / "library",
            name,
            flat_lora(lora) | {library.PROMPT: prompt},
            Card(
                kind="expert",
                method="pemt_source",
                task=f"task_{name}",
                base_fingerprint=TINY_BASE,
                description=f"the {name}",
                metrics={"accuracy": 0.5},
                config=facts,
            ),
        )
    return tmp_path / "library"


def settings(method):
    """The fixture's."""
    return Combination(
        method,
        fixture.WEIGHTS,
        density=None if method in ("cat", "linear", "svd") else fixture.DENSITY,
        rank=fixture.RANK if method in OF_PRODUCTS else None,
        seed=fixture.SEED,
    )


def assert_equal_pairs(ours, theirs, method):
    (a, b), (their_a, their_b) = ours, theirs
    if method == "cat":  # PEFT pads to the largest rank of any layer
        assert not their_a[:, a.shape[1] :].any() and not their_b[b.shape[0] :].any()
        their_a, their_b = their_a[:, : a.shape[1]], their_b[: b.shape[0]]
    if method in OF_PRODUCTS:  # a pair of singular vectors may have either sign
        np.testing.assert_allclose(a @ b, their_a @ their_b, rtol=0, atol=1e-5)
        signs = np.sign(np.sum(a * their_a, axis=0))
        a, b = a * signs, b * signs[:, None]
    np.testing.assert_allclose(a, their_a, rtol=0, atol=1e-5)
    np.testing.assert_allclose(b, their_b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_tensors_of_peft(folder, method):
    assert METHODS == tuple(fixture.METHODS)
    combine_experts(folder, "all", ["a", "b", "c"], settings(method))
    found = library.load_expert(folder, "all").lora
    assert found.keys() == {WO, QUERY}
    with np.load(fixture.FILE) as file:
        for linear, pair in found.items():
            theirs = [file[f"{method}/{linear}/{letter}"] for letter in "ab"]
            assert_equal_pairs(pair, theirs, method)


@pytest.mark.parity
@pytest.mark.parametrize("method", METHODS)
def test_peft_says_so_still(pairs, method):
    pytest.importorskip("torch", reason='needs torch: pip install "pemt_jax[parity]"')
    pytest.importorskip("peft", reason='needs peft: pip install "pemt_jax[parity]"')
    theirs = fixture.combined_by_peft(pairs, method)
    combination = settings(method)
    for linear in (WO, QUERY):
        ours = combination.combine(linear, [lora.get(linear) for lora in pairs])
        assert_equal_pairs(ours, theirs[linear], method)


def test_cat_is_the_weighted_sum_of_the_products(pairs):
    a, b = settings("cat").combine(WO, [lora[WO] for lora in pairs])
    expected = sum(
        w * lora[WO][0] @ lora[WO][1] for w, lora in zip(fixture.WEIGHTS, pairs, strict=True)
    )
    np.testing.assert_allclose(a @ b, expected, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="rank 1000, expected at most .*'svd' can give beside"):
        Combination("svd", fixture.WEIGHTS, rank=1000).combine(WO, [lora[WO] for lora in pairs])
    # At full rank svd is the same product, with orthonormal columns.
    combination = Combination("svd", fixture.WEIGHTS, rank=8)
    a, b = combination.combine(WO, [lora[WO] for lora in pairs])
    np.testing.assert_allclose(a @ b, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(a.T @ a, np.eye(8), rtol=0, atol=1e-5)


def test_ties_by_hand():
    a = [np.array([[4.0, -1, 3, 2]]), np.array([[2.0, 5, -9, 1]])]
    b = np.zeros((4, 1))
    combination = Combination("ties", (1, 4), density=0.5)
    found, _ = combination.combine(WO, [(matrix, b) for matrix in a])
    # Kept: [4, 0, 3, 0] and [0, 5, -9, 0], weighted by 1 and 2; in the third place -6 is elected.
    np.testing.assert_array_equal(found, [[4, 10, -18, 0]])


def test_dare_keeps_the_expected_value_and_draws_each_layer_by_its_name():
    combination = Combination("dare_linear", (1,), density=0.25, seed=1)
    pair = np.ones((400, 30)), np.ones((30, 5))
    a, _ = combination.combine(WO, [pair])
    assert set(np.unique(a)) == {0, 4} and abs(a.mean() - 1) < 0.1
    again, _ = combination.combine(WO, [pair])
    other, _ = combination.combine(QUERY, [pair])
    np.testing.assert_array_equal(a, again)
    assert np.any(a != other)


def test_ranks_of_their_own_in_each_layer_are_kept(folder, pairs):
    combine_experts(folder, "cut", ["a", "c"], Combination("svd", (0.5, 0.5)))
    lora = library.load_expert(folder, "cut").lora
    assert {linear: a.shape[1] for linear, (a, _) in lora.items()} == {WO: 3, QUERY: 2}
    combine_experts(folder, "both", ["a", "cut"], Combination("cat", (1, 1)))
    lora = library.load_expert(folder, "both").lora
    assert {linear: a.shape[1] for linear, (a, _) in lora.items()} == {WO: 6, QUERY: 4}
    with pytest.raises(UsageError, match=f"ranks 2, 4 beside {QUERY}, .* 'cat' or 'svd'"):
        combine_experts(folder, "no", ["a", "both"], Combination("linear", (1, 1)))


def test_the_card_says_how_it_was_made(folder):
    combine_experts(folder, "all", ["a", "b"], Combination("cat", (2, -1)), prompt_of="b")
    card, expert = check_expert_folder(folder / "all"), library.load_expert(folder, "all")
    np.testing.assert_array_equal(expert.prompt, library.load_expert(folder, "b").prompt)
    assert (card.task, card.description, card.rank) == ("task_b", "the b", 6)
    assert card.base_fingerprint == TINY_BASE and not card.metrics
    assert card.config == {
        "made": "combined",
        "sources": [
            {"name": name, "sha256": library.load_expert(folder, name).sha256} for name in "ab"
        ],
        "prompt_of": "b",
        "method": "cat",
        "weights": [2.0, -1.0],
        "seed": 0,
        "base": "/t5",
        "pemt": {
            "expert_rank": 6,
            "expert_linears": ["decoder/self_attention/query:2", "encoder/mlp/wo:6"],
            "lora_b_init": "zero",
        },
    }
    assert PemtConfig(**card.config["pemt"]).rank_of("encoder/mlp/wo") == 6
    options = library.bank_options([expert, library.load_expert(folder, "c")])
    assert options["expert_rank"] == 6  # it mixes with others


def test_a_random_expert_has_the_norms_of_another(folder):
    random_expert(folder, "random", "a", seed=3)
    random_expert(folder, "again", "a", seed=3)
    random_expert(folder, "other", "a", seed=4)
    like, random, again, other = (
        library.load_expert(folder, name) for name in ("a", "random", "again", "other")
    )
    assert random.lora.keys() == like.lora.keys()
    for linear, (a, b) in like.lora.items():
        new_a, new_b = random.lora[linear]
        norm = np.linalg.norm(new_a @ new_b)
        np.testing.assert_allclose(norm, np.linalg.norm(a @ b), rtol=1e-5)
        np.testing.assert_allclose(product_norm(a, b), np.linalg.norm(a @ b), rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(new_a), np.linalg.norm(a), rtol=1e-5)
        assert np.any(new_a != a) and np.any(new_a != other.lora[linear][0])
    norms = [np.linalg.norm(prompt, axis=1) for prompt in (random.prompt, like.prompt)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    assert random.sha256 == again.sha256 != other.sha256
    card = check_expert_folder(folder / "random")
    assert card.config["made"] == "random" and card.config["seed"] == 3 and not card.metrics
    assert card.config["like"] == {"name": "a", "sha256": like.sha256}


def test_a_zero_expert_has_a_random_one_that_is_zero(tmp_path, save_expert, expert_arrays):
    arrays = {path: 0 * array for path, array in expert_arrays().items()}
    save_expert("zero", arrays=arrays)
    random_expert(tmp_path / "library", "random", "zero")
    for a, b in library.load_expert(tmp_path / "library", "random").lora.values():
        np.testing.assert_array_equal(a @ b, 0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "tie"}, "method 'tie'.*nearest: 'ties'"),
        ({"weights": (1, float("nan"))}, "expected finite numbers"),
        ({"method": "ties"}, "'ties' has density None, expected a density"),
        ({"density": 0.5}, "'cat' has density 0.5, expected no density"),
        ({"method": "ties", "density": 0}, r"expected a number in \(0, 1\]"),
        ({"rank": 2}, "'cat' has rank 2, expected no rank"),
        ({"method": "svd", "rank": 0}, "'svd' has rank 0, expected 1 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(settings, message):
    with pytest.raises(UsageError, match=message):
        Combination(**{"method": "cat", "weights": (1, 1)} | settings)


def test_sources_that_do_not_fit_are_one_sentence(folder, save_expert):
    def fails(message, *arguments, kind=UsageError, **options):
        with pytest.raises(kind, match=message):
            combine_experts(folder, *arguments, **options)
        assert library.expert_names(folder) == ["a", "b", "c", "elsewhere"]

    save_expert("elsewhere", base_fingerprint="e" * 64, D=8)
    cat = Combination("cat", (1, 1))
    fails("exists already", "a", ["a", "b"], cat)
    fails("no name", "../a", ["a", "b"], cat)
    fails("2 weights for 1 experts", "x", ["a"], cat)
    fails("no expert 'd'", "x", ["a", "d"], cat)
    fails("named twice", "x", ["a", "a"], cat)
    fails("depends on the base eeee", "x", ["a", "elsewhere"], cat, kind=PemtError)
    fails("prompt of 'c' is asked for", "x", ["a", "b"], cat, prompt_of="c")
    with pytest.raises(UsageError, match="seed is -1"):
        random_expert(folder, "x", "a", -1)


def test_the_commands_say_what_they_have_made(folder, capsys):
    def run(*arguments):
        code = main([*arguments, f"--library={folder}"])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    code, said = run("combine", "mean", "--experts=a,b", "--method=cat")
    assert code == 0 and said.startswith("mean  combined  sha256 ")
    assert check_expert_folder(folder / "mean").config["weights"] == [0.5, 0.5]
    code, said = run(
        "combine",
        "cut",
        "--experts=a,b",
        "--weights=-1,2",
        "--method=dare_ties_svd",
        "--density=0.5",
        "--rank=1",
        "--seed=7",
        "--prompt_of=b",
    )
    config = check_expert_folder(folder / "cut").config
    assert code == 0 and (config["rank"], config["seed"], config["prompt_of"]) == (1, 7, "b")
    code, said = run("random", "noise", "--like=a", "--seed=1")
    assert code == 0 and said.startswith("noise  made at random  sha256 ")
    code, said = run("combine", "x", "--experts=a,b", "--weights=1,many", "--method=cat")
    assert code == 2 and "error: --weights is '1,many', expected numbers" in said
