import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pemt_jax.common.errors import UsageError
from pemt_jax.optimizers import make_optimizer, make_schedule


def run(optimizer, params, gradients):
    """Parameters after each of the given gradients."""
    update = jax.jit(optimizer.update)
    state, history = optimizer.init(params), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def random_gradients(count, scale=1.0):
    random = np.random.default_rng(0)
    shapes = {"a/kernel": (3, 4), "b/bias": (5,)}
    draw = lambda s: {k: (random.normal(size=v) * s).astype("f4") for k, v in shapes.items()}  # noqa: E731
    return draw(1.0), [draw(scale) for _ in range(count)]


@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_adamw_hf_adds_eps_before_the_bias_correction(scale):
    params, gradients = random_gradients(6, scale)
    lr, b1, b2, eps = 5e-3, 0.9, 0.999, 1e-8
    got = run(make_optimizer("adamw_hf", lr, clip_norm=None), params, gradients)
    for name, p in params.items():
        p, m, v = p.astype("f8"), 0.0, 0.0
        for t, gradient in enumerate(gradients, 1):
            m = b1 * m + (1 - b1) * gradient[name].astype("f8")
            v = b2 * v + (1 - b2) * gradient[name].astype("f8") ** 2
            p = p - lr * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
            # float32 keeps 1e-7 of a parameter of size 1, and of six updates of size lr.
            np.testing.assert_allclose(got[t - 1][name], p, rtol=1e-6, atol=1e-7)


def test_adamw_is_optax_adamw():
    params, gradients = random_gradients(4)
    got = run(make_optimizer("adamw", 1e-2, weight_decay=0.1, clip_norm=None), params, gradients)
    want = run(optax.adamw(1e-2, weight_decay=0.1), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_adamw_rms_moves_each_parameter_in_proportion_to_its_size():
    params = {"small": jnp.full((4,), 0.01), "large": jnp.full((4,), 10.0), "zero": jnp.zeros(4)}
    (after,) = run(make_optimizer("adamw_rms", 0.1), params, [jax.tree.map(jnp.ones_like, params)])
    moved = jax.tree.map(lambda a, b: float((b - a)[0]), after, params)
    assert moved["small"] == pytest.approx(0.001, rel=1e-3)
    assert moved["large"] == pytest.approx(1.0, rel=1e-3)
    assert moved["zero"] == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw", "adamw_hf", "adamw_rms", "adafactor"])
def test_every_optimizer_reduces_a_quadratic(name):
    target = np.linspace(-1, 1, 12).reshape(3, 4)
    params = {"w": jnp.ones((3, 4))}
    optimizer = make_optimizer(name, 0.05)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.sum((p["w"] - target) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(200):
        params, state = step(params, state)
    assert np.abs(params["w"] - target).max() < 0.2


def test_gradients_are_clipped_by_their_global_norm():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    gradient = {"a": jnp.full(3, 30.0), "b": jnp.full(2, 40.0)}
    optimizer = make_optimizer("adamw", 1.0, b1=0.0, b2=0.0, eps=1.0, clip_norm=1.0)
    (after,) = run(optimizer, params, [gradient])
    norm = np.sqrt(3 * 30.0**2 + 2 * 40.0**2)
    clipped = 30.0 / norm
    np.testing.assert_allclose(after["a"], -clipped / (clipped + 1.0), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(warmup=st.integers(0, 10), decay=st.integers(1, 30), lr=st.floats(1e-5, 1.0))
def test_linear_schedule_rises_from_zero_and_falls_to_zero(warmup, decay, lr):
    total = warmup + decay
    schedule = make_schedule("linear", lr, warmup, total)
    for step in range(total + 1):
        want = lr * step / warmup if step < warmup else lr * (total - step) / decay
        assert float(schedule(step)) == pytest.approx(want, rel=1e-5, abs=1e-9)


def test_first_warmup_step_changes_nothing():
    params, gradients = random_gradients(1)
    (after,) = run(
        make_optimizer("adamw_hf", make_schedule("linear", 1e-2, 2, 6)), params, gradients
    )
    jax.tree.map(np.testing.assert_array_equal, after, params)


def test_wsd_before_its_decay_does_not_depend_on_the_length_of_the_run():
    short, long = (make_schedule("wsd", 1e-2, 10, steps, 20) for steps in (100, 200))
    assert all(float(short(step)) == float(long(step)) for step in range(80))
    assert float(short(90)) == pytest.approx(5e-3) and float(short(100)) == 0.0
    assert float(long(100)) == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: make_schedule("linaer", train_steps=5), "nearest: 'linear'"),
        (lambda: make_schedule("linear"), "train_steps"),
        (lambda: make_schedule("linear", warmup_steps=7, train_steps=5), "7 warm-up"),
        (lambda: make_schedule("wsd", train_steps=5), "decay_steps"),
        (lambda: make_optimizer("adamv"), "nearest: 'adamw'"),
    ],
)
def test_wrong_settings_are_one_sentence(call, found):
    with pytest.raises(UsageError, match=found) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"clip_norm": -1}, "Found make_optimizer.clip_norm -1, expected more than 0"),
        ({"clip_norm": 0.0}, "Found make_optimizer.clip_norm 0.0, expected more than 0"),
        ({"schedule": -0.1}, "Found LEARNING_RATE -0.1, expected 0 or more"),
        ({"schedule": float("nan")}, "Found LEARNING_RATE nan, expected 0 or more and finite"),
        ({"schedule": 10**400}, "Found LEARNING_RATE 1000.*finite"),
        ({"schedule": "fast"}, "Found LEARNING_RATE 'fast', expected a number"),
        ({"b2": 1.0}, "Found make_optimizer.b2 1.0, expected 0 or more and less than 1"),
        ({"weight_decay": -1}, "Found make_optimizer.weight_decay -1, expected 0 or more"),
    ],
)
def test_a_number_outside_its_range_is_one_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        make_optimizer(**options)


def test_a_schedules_rate_has_a_range_too():
    with pytest.raises(UsageError, match="Found LEARNING_RATE -1, expected 0 or more"):
        make_schedule("constant", -1)
