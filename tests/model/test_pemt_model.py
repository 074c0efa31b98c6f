"""PemtModel: losses, what rows and columns of padding may not change, decoding, dropout."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import (
    REFERENCE,
    SOURCE,
    T5,
    T5_1_1,
    TARGET,
    batch_of,
    compiled,
    computed,
    jit,
    make_batch,
    random_params,
    rows,
    widen,
)

from pemt_jax.model.decoding import length_penalty
from pemt_jax.model.pemt_model import PemtModel

BATCH = make_batch([3, 6, 1, 5], [4, 5, 1, 2], S=6, T=5)
MODES = pytest.mark.parametrize("pemt", [TARGET, REFERENCE], ids=["default", "reference"])


@pytest.fixture(scope="module")
def params():
    return random_params(T5, TARGET)


@pytest.fixture(scope="module")
def params_1_1():
    return random_params(T5_1_1, TARGET, seed=33)


def close(found, expected, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=atol), found, expected
    )


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@MODES
def test_loss_is_cross_entropy_plus_weighted_mean_sparsity_loss(params, pemt):
    (loss, metrics), _ = compiled(T5, pemt, "gradients")(params, BATCH)
    logits, collected = compiled(T5, pemt, "apply")(params, BATCH, None)
    targets, real = BATCH["decoder_target_tokens"], BATCH["decoder_loss_weights"] > 0
    entropies = -np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0][real]
    tsl = [float(value) for path, value in collected.items() if path.endswith("/tsl")]
    gates = [np.asarray(value) for path, value in collected.items() if path.endswith("/gate")]
    assert len(tsl) == len(gates) == 2
    correct = (np.argmax(logits, axis=-1) == targets)[real]
    expected = {
        "cross_entropy": entropies.mean(),
        "token_accuracy": correct.mean(),
        "task_sparsity_loss": np.mean(tsl),
        "gate/nli": np.mean(gates, (0, 1))[0],
        "gate/qa": np.mean(gates, (0, 1))[1],
        "loss": entropies.mean() + 0.1 * np.mean(tsl),
    }
    close(computed(metrics), expected)
    close(loss, expected["loss"])
    # Sums and counts, so that batches of different sizes can be merged.
    assert metrics["cross_entropy"].count == real.sum() and metrics["gate/qa"].count == 4


@MODES
@pytest.mark.parametrize("filler", [0, 7], ids=["zeros", "tokens"])
def test_filler_rows_change_neither_loss_metrics_nor_gradients(params, pemt, filler):
    """Rows 0 and 1 twice give the same means as rows 0 and 1 with two rows that only fill."""
    twice, filled = rows(BATCH, [0, 1, 0, 1]), rows(BATCH, [0, 1, 2, 3])
    for name, array in filled.items():
        array[2:] = 0 if name == "decoder_loss_weights" else filler
    step = compiled(T5, pemt, "gradients")
    (loss, metrics), gradients = step(params, filled)
    (expected_loss, expected_metrics), expected_gradients = step(params, twice)
    close(loss, expected_loss)
    close(computed(metrics), computed(expected_metrics))
    close(gradients, expected_gradients)
    assert metrics["gate/nli"].count == metrics["loss"].count == 2


def test_a_batch_of_filler_rows_has_finite_loss_and_gradients(params):
    nothing = {name: np.zeros_like(array) for name, array in BATCH.items()}
    (loss, metrics), gradients = compiled(T5, TARGET, "gradients")(params, nothing)
    assert np.isfinite(loss) and metrics["cross_entropy"].count == 0
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_columns_of_padding_change_nothing_by_default(params):
    loss, metrics = compiled(T5, TARGET, "loss")(params, widen(BATCH, 3, 2), None)
    (expected_loss, expected_metrics), _ = compiled(T5, TARGET, "gradients")(params, BATCH)
    close(loss, expected_loss)
    close(computed(metrics), computed(expected_metrics))


def test_columns_of_padding_change_the_sparsity_loss_of_the_reference_only(params):
    _, metrics = compiled(T5, REFERENCE, "loss")(params, widen(BATCH, 3, 2), None)
    (_, narrow), _ = compiled(T5, REFERENCE, "gradients")(params, BATCH)
    found, expected = computed(metrics), computed(narrow)
    changed = {name for name in found if abs(found[name] - expected[name]) > 1e-5}
    assert changed == {"task_sparsity_loss", "loss"}


def test_a_zero_bank_of_experts_gives_no_nan(params):
    """Experts that are zero, as an imported one is in the layers that it does not cover."""
    zeroed = jax.tree_util.tree_map_with_path(
        lambda path, x: np.zeros_like(x) if any(k.key == "experts" for k in path) else x, params
    )
    (_, metrics), gradients = compiled(T5, TARGET, "gradients")(zeroed, BATCH)
    assert computed(metrics)["task_sparsity_loss"] == pytest.approx(1)  # all cosines are 0
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_batch_of_one_equals_that_row_repeated(params):
    row = rows(BATCH, [1])
    loss, metrics = compiled(T5, TARGET, "loss")(params, row, None)
    (expected_loss, expected_metrics), _ = compiled(T5, TARGET, "gradients")(
        params, rows(BATCH, [1, 1, 1, 1])
    )
    close(loss, expected_loss)
    close(computed(metrics), computed(expected_metrics))


def test_one_row_and_a_target_of_one_token_equal_that_part_of_the_batch(params):
    apply = compiled(T5, TARGET, "apply")
    whole, collected = apply(params, BATCH, None)
    batch = rows(BATCH, [1])
    for name in batch:
        batch[name] = batch[name] if name.startswith("encoder") else batch[name][:, :1]
    logits, collected_one = apply(params, batch, None)
    assert logits.shape == (1, 1, T5.vocab_size)
    close(logits, whole[1:2, :1])
    for stack in ("encoder", "decoder"):
        gate = f"{stack}/layers_0/mlp/gate"
        close(collected_one[gate], collected[gate][1:2])


def test_one_frozen_expert_is_the_source_expert(params):
    """With one expert the gate is 1; a silent source prompt leaves the stage 1 model.

    The prompts have one row.
    """
    stage_1 = dataclasses.replace(SOURCE, prompt_length=1)
    one = dataclasses.replace(
        stage_1, source_expert=False, expert_names=("only",), source_prompt_lengths=(1,)
    )
    source, target = random_params(T5, stage_1), random_params(T5, one)
    target |= {name: source[name] for name in ("token_embedder", "prompt")}
    for stack in ("encoder", "decoder"):
        gate = target[stack]["layers_0"]["mlp"]["gate"]
        mlp = dict(source[stack]["layers_0"]["mlp"])
        expert = mlp.pop("expert")
        bank = {"lora_a": expert["lora_a"][:, None], "lora_b": expert["lora_b"][None]}
        target[stack] = {
            **source[stack],
            "layers_0": {
                **source[stack]["layers_0"],
                "mlp": {**mlp, "experts": bank, "gate": gate},
            },
        }
    target["source_prompts"]["embedding"][:] = 0
    logits, collected = compiled(T5, one, "apply")(target, BATCH, None)
    expected, nothing = compiled(T5, stage_1, "apply")(source, BATCH, None)
    close(logits, expected, atol=1e-5)
    assert not nothing
    np.testing.assert_array_equal(collected["encoder/layers_0/mlp/gate"], np.ones((4, 1)))


def test_loss_is_normalised_by_tokens_or_by_sequences(params):
    by_sequence = dataclasses.replace(TARGET, loss_normalization="sequences")
    logits, _ = compiled(T5, TARGET, "apply")(params, BATCH, None)
    targets, weights = BATCH["decoder_target_tokens"], BATCH["decoder_loss_weights"]
    entropies = -np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0]
    of_rows = [entropies[b, : weights[b].sum()].mean() for b in range(4)]
    loss, metrics = compiled(T5, by_sequence, "loss")(params, BATCH, None)
    metrics = computed(metrics)
    close(float(loss) - 0.1 * metrics["task_sparsity_loss"], np.mean(of_rows))
    # The metric stays the mean over tokens: it is compared between runs.
    close(metrics["cross_entropy"], entropies[weights > 0].mean())


def recomputed_greedy(t5, pemt, params, inputs_BS, length):
    """Greedy decoding without a cache: argmax over the whole sequence again at every step."""
    apply = compiled(t5, pemt, "apply")
    tokens_BT = np.zeros((len(inputs_BS), length), np.int32)
    scores_B, ended_B = np.zeros(len(inputs_BS)), np.zeros(len(inputs_BS), bool)
    for step in range(length):
        batch = batch_of(inputs_BS, tokens_BT)
        # All positions count as real, so that what is generated is attended to, a 0 too.
        batch["decoder_target_tokens"] = np.ones_like(tokens_BT)
        batch["decoder_loss_weights"] = np.ones_like(tokens_BT)
        log_probs_BV = log_softmax(apply(params, batch, None)[0][:, step])
        best_B = log_probs_BV.argmax(axis=-1)
        scores_B += np.where(ended_B, 0, log_probs_BV.max(axis=-1))
        tokens_BT[:, step] = np.where(ended_B, 0, best_B)
        ended_B |= best_B == 1
    return tokens_BT, scores_B


ROWS = 12
GENERATED = make_batch([3, 6, 1, 5] * 3, [7] * ROWS, S=6, T=7, seed=4)
for _array in GENERATED.values():
    _array[3] = 0  # a row that only fills the batch


@pytest.fixture(scope="module")
def greedy(params_1_1):
    return jit(PemtModel(T5_1_1, TARGET).predict_batch_with_aux)(params_1_1, GENERATED)


def test_cached_greedy_decoding_equals_full_recomputation(params_1_1, greedy):
    """Gated gelu, two decoder layers, prompts, experts and adapter in the cached path."""
    tokens_BT, aux = greedy
    expected, scores = recomputed_greedy(
        T5_1_1, TARGET, params_1_1, GENERATED["encoder_input_tokens"], 7
    )
    real = np.arange(ROWS) != 3
    np.testing.assert_array_equal(tokens_BT[real], expected[real])
    np.testing.assert_allclose(aux["scores"][real], scores[real], rtol=1e-4)
    # The case is worth something: rows differ, some end early and some do not end.
    ends = (expected[real] == 1).any(axis=1)
    assert len(np.unique(expected[real], axis=0)) > 4 and ends.any() and not ends.all()


def test_filler_rows_are_decoded_to_nothing(greedy):
    assert not np.any(greedy[0][3]) and greedy[1]["scores"][3] == 0


def test_a_row_is_decoded_alone_as_in_its_batch(params_1_1, greedy):
    predict = jit(PemtModel(T5_1_1, TARGET).predict_batch)
    np.testing.assert_array_equal(predict(params_1_1, rows(GENERATED, [5])), greedy[0][5:6])


def test_prediction_reports_the_mean_gate_of_evaluation(params_1_1, greedy):
    _, collected = compiled(T5_1_1, TARGET, "apply")(params_1_1, GENERATED, None)
    gates = [value for path, value in collected.items() if path.endswith("/gate")]
    assert len(gates) == 3  # one layer of the encoder, two of the decoder
    close(greedy[1]["gate"], sum(gates) / 3)


def test_scores_of_a_prediction_are_those_of_its_tokens(params_1_1, greedy):
    tokens_BT, aux = np.asarray(greedy[0]), greedy[1]
    batch = batch_of(GENERATED["encoder_input_tokens"], tokens_BT)
    scores = jit(PemtModel(T5_1_1, TARGET).score_batch)(params_1_1, batch)
    # A 0 before the end is padding to score_batch: rows that have one cannot be compared.
    until_end = [row[: row.index(1) + 1] if 1 in row else row for row in tokens_BT.tolist()]
    plain = np.array([0 not in row for row in until_end])
    assert plain.sum() >= 4
    np.testing.assert_allclose(scores[plain], aux["scores"][plain], rtol=1e-4)


@pytest.mark.parametrize("length", [3, 9])
def test_max_decode_length_takes_the_place_of_the_targets_length(params_1_1, length):
    model = PemtModel(T5_1_1, TARGET, max_decode_length=length)
    assert jax.eval_shape(model.predict_batch, params_1_1, GENERATED).shape == (ROWS, length)


def test_keys_and_values_of_the_encoder_are_computed_once_for_all_tokens(params_1_1):
    """XLA takes what does not change out of the loop; this is where we would see it stop."""
    model = PemtModel(T5_1_1, TARGET)
    text = jax.jit(model.predict_batch).lower(params_1_1, BATCH).compile().as_text()
    (loop,) = set(re.findall(r"body=%?([\w.\-]+)", text))
    body = re.search(rf"^%?{re.escape(loop)} .*?^}}", text, re.MULTILINE | re.DOTALL)[0]
    for name in ("key", "value"):
        product = f"encoder_decoder_attention/{name}/dot_general"
        assert product in text and product not in body
    assert "self_attention/key/dot_general" in body


def test_beams_of_a_model_equal_exhaustive_search():
    """Three tokens and two steps: all seven sequences scored by the teacher-forced model."""
    t5 = dataclasses.replace(T5, vocab_size=3)
    params = random_params(t5, REFERENCE, seed=1)
    inputs_BS = np.array([[2, 2, 1, 0], [0, 0, 0, 0], [2, 1, 0, 0]], np.int32)
    batch = batch_of(inputs_BS, np.array([[1, 1], [0, 0], [1, 1]], np.int32))  # a filler row
    predict = jit(
        PemtModel(t5, REFERENCE).predict_batch_with_aux,
        static_argnames=("return_all_decodes", "num_decodes"),
    )
    tokens_BKT, aux = predict(params, batch, return_all_decodes=True, num_decodes=7)

    sequences = [(1, 0), *itertools.product((0, 2), range(3))]
    for row in (0, 2):
        scores = []
        for sequence in sequences:
            one = batch_of(inputs_BS, np.array([sequence] * 3, np.int32))
            log_probs = log_softmax(compiled(t5, REFERENCE, "apply")(params, one, None)[0])[row]
            length = 1 if sequence[0] == 1 else 2
            score = sum(log_probs[t, sequence[t]] for t in range(length))
            scores.append(float(score / length_penalty(length, 0.6)))
        order = np.argsort(scores)  # as T5X: the best is the last
        np.testing.assert_allclose(aux["scores"][row], np.array(scores)[order], rtol=1e-4)
        assert tokens_BKT[row].tolist() == [list(sequences[i]) for i in order]


def test_one_decode_has_an_axis_of_its_own_only_where_all_are_asked_for(params_1_1, greedy):
    all_BKT, all_aux = jax.eval_shape(
        lambda p: PemtModel(T5_1_1, TARGET).predict_batch_with_aux(
            p, GENERATED, return_all_decodes=True
        ),
        params_1_1,
    )
    best_BT, aux = jax.eval_shape(
        lambda p: PemtModel(T5_1_1, TARGET).predict_batch_with_aux(p, GENERATED, num_decodes=3),
        params_1_1,
    )
    assert all_BKT.shape == (ROWS, 1, 7) and best_BT.shape == (ROWS, 7)
    assert aux["scores"].shape == (ROWS,) and all_aux["scores"].shape == (ROWS, 1)


def test_scores_are_sums_of_the_scores_of_tokens(params_1_1):
    score = jit(PemtModel(T5_1_1, TARGET).score_batch, static_argnames="return_intermediates")
    scores, intermediates = score(params_1_1, GENERATED, return_intermediates=True)
    (tokens_BT,) = intermediates["decoder"]["token_scores"]
    np.testing.assert_allclose(scores, np.sum(tokens_BT, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(scores, score(params_1_1, GENERATED))
    assert (np.asarray(tokens_BT)[GENERATED["decoder_loss_weights"] > 0] < 0).all()


def program(t5, pemt, params) -> str:
    """The program of the loss without a dropout key."""
    return compiled(t5, pemt, "loss").lower(params, BATCH, None).as_text()


def test_dropout_needs_a_key_and_the_key_decides(params):
    t5 = dataclasses.replace(T5, dropout_rate=0.1)
    loss = compiled(t5, TARGET, "loss")
    (undropped, _), _ = compiled(T5, TARGET, "gradients")(params, BATCH)
    assert program(t5, TARGET, params) == program(T5, TARGET, params)
    first, again, other = (float(loss(params, BATCH, jax.random.key(k))[0]) for k in (0, 0, 1))
    assert first == again and abs(first - other) > 1e-4 and abs(first - undropped) > 1e-4


def test_prompt_attention_dropout_is_the_authors_0_1_in_training_only(params):
    """It acts with dropout_rate 0 too, and nothing else does then."""
    pemt = dataclasses.replace(TARGET, prompt_attention_dropout=0.1)
    loss = compiled(T5, pemt, "loss")
    (undropped, _), _ = compiled(T5, TARGET, "gradients")(params, BATCH)
    assert program(T5, pemt, params) == program(T5, TARGET, params)
    dropped = [float(loss(params, BATCH, jax.random.key(k))[0]) for k in range(6)]
    assert max(abs(value - undropped) for value in dropped) > 1e-3
    silent = jax.tree.map(np.copy, params)
    silent["source_prompts"]["embedding"][:] = 0
    (undropped, _), _ = compiled(T5, TARGET, "gradients")(silent, BATCH)
    close(loss(silent, BATCH, jax.random.key(0))[0], undropped)


def test_bfloat16_logits_are_close_and_float32_parameters_stay(params):
    half = dataclasses.replace(T5, dtype="bfloat16")
    logits, collected = compiled(half, TARGET, "apply")(params, BATCH, None)
    expected, in_float32 = compiled(T5, TARGET, "apply")(params, BATCH, None)
    real = BATCH["decoder_loss_weights"] > 0
    assert logits.dtype == jnp.float32  # as T5X computes them
    # 8 bits through four sublayers: some per cent of the spread of the logits.
    assert np.abs(logits.astype(np.float32) - expected)[real].max() < 0.05 * np.std(expected[real])
    for path, value in collected.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, in_float32[path], atol=0.02)
    variables = jax.eval_shape(
        lambda: PemtModel(half, TARGET).get_initial_variables(
            jax.random.key(0), {name: array.shape for name, array in BATCH.items()}
        )
    )
    assert {like.dtype for like in jax.tree.leaves(variables["params"])} == {np.dtype("float32")}


@pytest.mark.slow
def test_model_tells_t5x_its_feature_converter_and_vocabularies():
    import seqio

    vocabulary = object()
    model = PemtModel(T5, TARGET, vocabulary)
    assert model.FEATURE_CONVERTER_CLS is seqio.EncDecFeatureConverter
    assert model.input_vocabulary is model.output_vocabulary is vocabulary
