import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training as tiny
from tiny_training import train

from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.optimizers import make_optimizer, make_schedule
from pemt_jax.parallel.stop_signals import Stopped
from pemt_jax.training.metrics_log import MetricsLog, read_metrics
from pemt_jax.training.trainer import Trainer


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every test builds its own trainer; the persistent cache compiles them once."""
    cache = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in cache}
    for name, value in cache.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def make_trainer(loss_fn=tiny.loss_fn, name="adamw", seed=1, frozen_dtype=np.float32):
    trainable, frozen = tiny.parameters()
    frozen = {path: value.astype(frozen_dtype) for path, value in frozen.items()}
    optimizer = make_optimizer(name, make_schedule("linear", 1e-2, 2, 20))
    return Trainer(loss_fn, trainable, frozen, optimizer, seed)


def run(folder, steps, trainer=None, batches=tiny.batches, metric="loss", **options):
    """Train in `folder`, resuming what is there; (trainer, result)."""
    trainer = trainer or make_trainer()
    options = {"log_every": 5, "show_bar": False} | options
    with Checkpoints(folder, {"run": 1}, metric, False) as checkpoints:
        return trainer, train(trainer, batches, steps, checkpoints=checkpoints, **options)


def assert_same_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_frozen_leaves_keep_their_bits_and_have_no_slot(dtype):
    trainer = make_trainer(frozen_dtype=dtype)
    trainable, frozen = tiny.parameters()
    train(trainer, tiny.batches, 10, show_bar=False)
    for path, value in frozen.items():
        assert trainer.frozen[path].dtype == dtype
        np.testing.assert_array_equal(np.asarray(trainer.frozen[path]), value.astype(dtype))
    assert set(trainer.state.trainable) == set(trainable)
    assert all((np.asarray(trainer.state.trainable[p]) != v).any() for p, v in trainable.items())
    slots = [leaf.shape for leaf in jax.tree.leaves(trainer.state.opt_state) if leaf.ndim]
    assert sorted(slots) == sorted(2 * [value.shape for value in trainable.values()])


def test_callers_arrays_outlive_the_donated_state():
    trainable, frozen = jax.tree.map(jnp.asarray, tiny.parameters())
    trainer = Trainer(tiny.loss_fn, trainable, frozen, make_optimizer())
    train(trainer, tiny.batches, 2, show_bar=False)
    assert_same_bits((trainable, frozen), tiny.parameters())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("adamw", marks=pytest.mark.slow),
        pytest.param("adafactor", marks=(pytest.mark.slow, pytest.mark.walk)),
    ],
)
def test_stopped_and_resumed_run_has_the_bits_of_the_whole_run(tmp_path, name):
    options = {
        "validation": tiny.validation,
        "eval_every": 4,
        "best_metric": "loss",
        "higher_is_better": False,
    }
    whole, result = run(tmp_path / "whole", 20, make_trainer(name=name), **options)
    run(tmp_path / "parts", 10, make_trainer(name=name), **options)
    parts, resumed = run(tmp_path / "parts", 20, make_trainer(name=name), **options)
    assert_same_bits(whole.state, parts.state)
    assert resumed == result
    assert int(parts.state.step) == 20


def test_every_step_and_seed_has_its_own_dropout():
    """With a learning rate of 0 the same batch differs by its dropout alone."""

    def losses(seed):
        trainer = Trainer(tiny.loss_fn, *tiny.parameters(), make_optimizer(schedule=0.0), seed)
        return [float(trainer.step(tiny.batch_at(0))["loss"].compute()) for _ in range(4)]

    one, other = losses(1), losses(2)
    assert len({*one, *other}) == 8
    assert losses(1) == one


def test_logged_loss_is_the_mean_over_the_window(tmp_path):
    trainer = make_trainer()
    expected = []
    for step in range(10):
        params = trainer.params()
        rng = jax.random.fold_in(jax.random.key(1), step)
        expected.append(float(tiny.loss_fn(params, tiny.batch_at(step), rng)[0]))
        trainer.step(tiny.batch_at(step))
    with MetricsLog(tmp_path, tensorboard=False) as log:
        train(make_trainer(), tiny.batches, 10, log=log, log_every=5, show_bar=False)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10]
    for row, window in zip(rows, (expected[:5], expected[5:]), strict=True):
        assert row["loss"] == pytest.approx(np.mean(window), rel=1e-6)
        assert row["cross_entropy"] == pytest.approx(np.mean(window), rel=1e-6)
        assert row["gradient_norm"] > 0 and row["examples_per_second"] > 0


def test_resumed_log_has_each_step_once(tmp_path):
    for steps in (10, 20):
        with MetricsLog(tmp_path, tensorboard=False) as log:
            log.resume(steps - 10)
            for step in (5, 10, 15):  # 15 was logged but never saved
                if step >= steps - 10:
                    log.write(step, "train", {"loss": 1.0, "nothing": float("nan")})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 10, 15]
    assert rows[0]["nothing"] is None
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "ki')  # a crash in the middle of a line
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_a_run_stopped_before_its_evaluation_logs_it_once(tmp_path):
    for evaluated in (None, None, 10):
        with MetricsLog(tmp_path, tensorboard=False) as log:
            log.resume(10, evaluated)
            if evaluated is None:
                log.write(10, "validation", {"loss": 1.0})
            log.write(15, "train", {"loss": 1.0})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["kind"]) for row in rows] == [(10, "validation"), (15, "train")]


def test_metrics_are_in_tensorboard_files_too(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(3, "train", {"loss": 1.5})
    assert any(b"train/loss" in path.read_bytes() for path in tmp_path.glob("events.*"))


def nan_at(step):
    def batches(start):
        for batch, at in zip(tiny.batches(start), range(start, 100), strict=False):
            yield batch | ({"decoder_loss_weights": np.zeros((8, 3), "i4")} if at == step else {})

    return batches


@pytest.mark.parametrize(("at", "kept"), [(6, 4), (7, 4), (8, 8)])
def test_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, at, kept):
    found = (
        rf"^Step {at} had loss nan, gradient norm nan and update norm nan, first in the "
        r"gradient of encoder/mlp/kernel, expected finite numbers "
        rf"\(the last finite checkpoint is step {kept}\)\.$"
    )
    with pytest.raises(PemtError, match=found):
        run(tmp_path, 20, batches=nan_at(at), save_every=4, log_every=3)
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        assert checkpoints.latest_step() == kept


def test_a_run_stopped_after_a_step_that_is_not_finite_does_not_save_it(tmp_path):
    def batches(start):
        for batch in nan_at(6)(start):
            if not batch["decoder_loss_weights"].any():
                signal.raise_signal(signal.SIGTERM)
            yield batch

    with pytest.raises(PemtError, match="^Step 6 had loss nan.*the last finite checkpoint is step"):
        run(tmp_path, 20, batches=batches, save_every=4, log_every=20)
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        assert checkpoints.latest_step() == 4


@jax.custom_vjp
def infinite_gradient(x):
    return x


infinite_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.full_like(g, jnp.inf),))


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("the gradient of token_embedder/embedding", "loss [0-9.]+, gradient norm inf and update"),
        ("the frozen decoder/logits_dense/kernel", "loss (nan|inf), gradient norm nan and update"),
    ],
)
def test_first_leaf_that_is_not_finite_is_named(what, values):
    def loss_fn(params, batch, rng):
        embedding = params["token_embedder"]["embedding"]
        if "gradient" in what:
            params = params | {"token_embedder": {"embedding": infinite_gradient(embedding)}}
        return tiny.loss_fn(params, batch, rng)

    trainable, frozen = tiny.parameters()
    if "frozen" in what:
        frozen["decoder/logits_dense/kernel"][0, 0] = np.inf
    trainer = Trainer(loss_fn, trainable, frozen, make_optimizer(schedule=1e-2))
    with pytest.raises(PemtError, match=f"^Step 0 had {values} norm nan, first in {what}, exp"):
        train(trainer, tiny.batches, 2, show_bar=False)


def test_log_of_a_stopped_run_is_that_of_the_run_that_was_left_alone(tmp_path):
    def go(folder, batches=tiny.batches):
        with MetricsLog(tmp_path / folder, tensorboard=False) as log:
            run(
                tmp_path / folder / "checkpoints",
                12,
                batches=batches,
                log=log,
                log_every=5,
                validation=tiny.validation,
                eval_every=6,
            )

    go("whole")
    for step in (3, 7):
        with pytest.raises(Stopped):
            go("parts", stopping_at(step, signal.SIGTERM))
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 12, "kind": "validation"}) + "\n[7]\n\0\xff{")
    go("parts")
    whole, parts = (
        [
            {k: v for k, v in row.items() if k not in ("time", "examples_per_second")}
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "parts")
    )
    assert parts == whole and [row["step"] for row in whole] == [5, 6, 6, 10, 12, 12]


def test_early_stop_survives_a_resume(tmp_path):
    values = {4: 3.0, 8: 2.0, 12: 2.0, 16: 5.0, 20: 4.0, 24: 9.0}

    def evaluator(trainer):
        return lambda params: {"loss": values[int(trainer.state.step)]}

    def go(folder, steps):
        trainer = make_trainer()
        return run(
            folder,
            steps,
            trainer,
            validation=evaluator(trainer),
            eval_every=4,
            patience=3,
            best_metric="loss",
            higher_is_better=False,
        )[1]

    result = go(tmp_path / "whole", 100)
    assert (result.step, result.best_step, result.best_value) == (20, 8, 2.0)
    go(tmp_path / "parts", 12)
    assert go(tmp_path / "parts", 100) == result
    assert go(tmp_path / "parts", 100) == result  # nothing left to do
    assert {path.name for path in (tmp_path / "parts").glob("[0-9]*")} == {"8", "16", "20"}


def stopping_at(step, number):
    def batches(start):
        for batch, at in zip(tiny.batches(start), range(start, 100), strict=False):
            if at == step:
                os.kill(os.getpid(), number)
            yield batch

    return batches


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_at_the_step_and_the_same_command_resumes(tmp_path, number, code):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match="after step 8 of 20.*the same command resumes") as stop:
        run(tmp_path / "parts", 20, batches=stopping_at(7, number))
    assert stop.value.exit_code == code
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    parts, _ = run(tmp_path / "parts", 20)
    whole, _ = run(tmp_path / "whole", 20)
    assert_same_bits(whole.state, parts.state)


def test_signal_leaves_an_evaluation_which_is_made_again(tmp_path):
    calls = []

    def interrupted(params):
        calls.append("cut short")
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    def evaluate(params):
        calls.append("whole")
        return tiny.validation(params)

    options = {"eval_every": 5, "best_metric": "loss", "higher_is_better": False}
    with pytest.raises(Stopped, match="after step 5"):
        run(tmp_path, 10, validation=interrupted, **options)
    trainer, result = run(tmp_path, 10, validation=evaluate, **options)
    assert calls == ["cut short", "whole", "whole"]
    with Checkpoints(tmp_path, {"run": 1}, "loss", False) as checkpoints:
        assert checkpoints.best_step() == result.best_step
        assert checkpoints.latest_step() == 10


def test_each_batch_shape_is_compiled_once():
    traces = []

    def counted(params, batch, rng):
        traces.append(batch["encoder_input_tokens"].shape)
        return tiny.loss_fn(params, batch, rng)

    trainer = make_trainer(counted)
    train(trainer, tiny.batches, 9, show_bar=False)
    assert sorted(traces) == [(8, 4), (8, 8)]
    assert not trainer.compiles(tiny.batch_at(0))


def test_nothing_is_read_back_between_log_points(monkeypatch):
    read = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: read.append(1) or device_get(x))
    train(make_trainer(), tiny.batches, 20, log_every=10, show_bar=False)
    assert len(read) == 2 * 2  # the check and the values, at each of two log points


def test_plain_lines_where_there_is_no_terminal(capfd):
    train(make_trainer(), tiny.batches, 4, log_every=2, show_bar=True)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0] == "step 0/4  compiling"
    assert lines[2].startswith("step 4/4  loss ") and "examples/s" in lines[2]


@pytest.mark.parametrize(
    ("options", "found"), [({"log_every": 0}, "log_every 0"), ({"patience": 2}, "Patience needs")]
)
def test_wrong_settings_are_one_sentence(options, found):
    with pytest.raises(UsageError, match=found):
        train(make_trainer(), tiny.batches, 2, show_bar=False, **options)


def test_fewer_steps_than_were_made_is_one_sentence(tmp_path):
    run(tmp_path, 10)
    with pytest.raises(UsageError, match="is at step 10, expected TRAIN_STEPS"):
        run(tmp_path, 5)


def test_data_that_ends_early_is_one_sentence():
    with pytest.raises(PemtError, match="ended at step 3"):
        batches = lambda start: iter([tiny.batch_at(0)] * 3)  # noqa: E731
        train(make_trainer(), batches, 5, show_bar=False)


MESHES = textwrap.dedent("""
    import json, sys
    import jax, numpy as np
    sys.path.insert(0, sys.argv[1])
    import tiny_training as tiny
    from pemt_jax.parallel import partitioning
    from pemt_jax.checkpoints.manager import Checkpoints
    from pemt_jax.training.metrics_log import MetricsLog
    from pemt_jax.optimizers import make_optimizer
    from pemt_jax.training.trainer import Trainer
    from tiny_training import train

    def go(folder, steps, model):
        mesh = partitioning.make_mesh(model=model)
        axes = {path + "_axes": names for path, names in tiny.AXES.items()}
        from flax.traverse_util import unflatten_dict
        trainer = Trainer(tiny.loss_fn, *tiny.parameters(), make_optimizer(schedule=1e-2), 1, mesh,
                          unflatten_dict(axes, sep="/"))
        with Checkpoints(f"{sys.argv[2]}/{folder}", {"run": 1}) as checkpoints, MetricsLog(
            f"{sys.argv[2]}/{folder}-log", False) as log:
            train(trainer, tiny.batches, steps, checkpoints=checkpoints, log=log, log_every=1,
                  show_bar=False)
        return trainer

    model = int(sys.argv[3])
    whole = go(f"whole{model}", 20, model)
    spec = whole.state.trainable["token_embedder/embedding"].sharding.spec
    assert spec[0] == "model", spec
    go(f"parts{model}", 10, model)
    parts = go(f"parts{model}", 20, model)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(parts.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    if model == 2:  # a run may go on where the devices are arranged in another way
        go("other", 10, 2)
        go("other", 20, 4)
""")


@pytest.mark.slow  # test_train.py does so with a whole run
def test_four_devices_resume_to_the_bit_and_agree_with_one(tmp_path):
    def go(devices, model):
        flags = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [
                sys.executable,
                "-c",
                MESHES,
                str(Path(__file__).parents[1]),
                str(tmp_path),
                str(model),
            ],
            check=True,
            env={
                **os.environ,
                "XLA_FLAGS": flags,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
        )

    go(1, 1)
    go(4, 2)

    def losses(folder):
        lines = (tmp_path / f"{folder}-log" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert len(losses("whole1")) == 20
    # One machine and four only sum in another order.
    np.testing.assert_allclose(losses("whole2"), losses("whole1"), rtol=1e-5)
    np.testing.assert_allclose(losses("other"), losses("whole1"), rtol=1e-5)
    target = make_trainer().state
    with (
        Checkpoints(tmp_path / "whole1", {"run": 1}) as one,
        Checkpoints(tmp_path / "whole2", {"run": 1}) as four,
    ):
        a, b = (c.restore_trainable(20, target.trainable) for c in (one, four))
    for path in a:
        np.testing.assert_allclose(np.asarray(a[path]), np.asarray(b[path]), atol=1e-4)
