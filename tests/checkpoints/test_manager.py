import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pemt_jax.checkpoints import manifest as manifests
from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.checkpoints.restore import DamagedCheckpoint
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.methods import get_method, split
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import make_optimizer


def state_of(value, dtype=jnp.float32):
    params = {
        "encoder/layers_0/kernel": jnp.full((40, 30), value, dtype),
        "prompt/embedding": jnp.full((3, 8), -value, dtype),
    }
    opt_state = make_optimizer("adamw").init(params)
    return {"step": jnp.int32(value), "trainable": params, "opt_state": opt_state}


def steps_in(folder):
    return sorted(int(path.name) for path in Path(folder).iterdir() if path.name.isdigit())


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def saved(folder, *scores, higher=True):
    """Checkpoints at steps 10, 20, ... with metric `acc`, None for a save without evaluation."""
    with Checkpoints(folder, {"run": 1}, "acc", higher) as checkpoints:
        for i, score in enumerate(scores, 1):
            metrics = None if score is None else {"acc": score}
            checkpoints.save(10 * i, state_of(10 * i), metrics, note=i)
    return folder


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_restored_state_is_the_saved_one(tmp_path, dtype):
    state = state_of(7, dtype)
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        checkpoints.save(7, state)
        assert_equal(checkpoints.restore(7, state_of(0, dtype)), state)
        found = checkpoints.restore_trainable(7, state_of(0, dtype)["trainable"])
        assert_equal(found, state["trainable"])


@pytest.mark.parametrize(
    ("scores", "higher", "best", "kept"),
    [
        ([0.1, 0.5, 0.3], True, 20, [20, 30]),
        ([0.1, 0.5, 0.3], False, 10, [10, 20, 30]),
        ([0.5, 0.5, 0.2, 0.5], True, 10, [10, 30, 40]),
        ([0.3, None, None], True, 10, [10, 20, 30]),
        ([None, None, None], True, None, [20, 30]),
        ([float("nan"), 0.1, float("nan")], True, 20, [20, 30]),
        ([-2.0, None, -3.0, -4.0], True, 10, [10, 30, 40]),
    ],
)
def test_two_latest_and_best_are_kept_and_of_equal_ones_the_earliest(
    tmp_path, scores, higher, best, kept
):
    saved(tmp_path, *scores, higher=higher)
    assert steps_in(tmp_path) == kept
    with Checkpoints(tmp_path, {"run": 1}, "acc", higher) as checkpoints:
        assert checkpoints.best_step() == best
        assert checkpoints.latest_step() == kept[-1]


def test_best_survives_reopening_and_further_saves(tmp_path):
    saved(tmp_path, 0.1, 0.9, 0.3)
    with Checkpoints(tmp_path, {"run": 1}, "acc") as checkpoints:
        checkpoints.save(40, state_of(40), {"acc": 0.4})
        checkpoints.save(50, state_of(50))
        checkpoints.wait()
        assert steps_in(tmp_path) == [20, 40, 50]
        assert_equal(checkpoints.restore(20, state_of(0)), state_of(20))


def damage(folder, *steps):
    """Flip a byte of the arrays of these steps."""
    for step in steps:
        (file,) = (Path(folder) / str(step) / "state" / "d").iterdir()
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("scores", "higher", "damaged", "restored"),
    [
        ([0.9, 0.1, 0.5], True, [], 10),
        ([0.9, 0.1, 0.5], True, [10], 30),
        pytest.param(*([0.9, 0.1, 0.5], True, [10, 30], 20), marks=pytest.mark.slow),
        pytest.param(*([0.1, 0.3, 0.2], False, [10], 30), marks=pytest.mark.slow),
        pytest.param(*([0.9, None, 0.5], True, [10, 30], 20), marks=pytest.mark.slow),
        ([0.9, None, None], True, [10], 30),
        ([0.9, None, None], True, [10, 30], 20),
        ([None, None], True, [], 20),
        ([None, None], True, [20], 10),
    ],
)
def test_the_best_complete_checkpoint_is_restored(
    tmp_path, capfd, scores, higher, damaged, restored
):
    saved(tmp_path, *scores, higher=higher)
    kept = steps_in(tmp_path)
    damage(tmp_path, *damaged)
    for _ in range(2):  # a second attempt finds nothing to set aside
        with Checkpoints(tmp_path, {"run": 1}, "acc", higher) as checkpoints:
            target = state_of(0)["trainable"]
            step, values, metrics = checkpoints.restore_best(kept[-1], target)
            assert step == restored
            assert_equal(values, state_of(restored)["trainable"])
            score = scores[restored // 10 - 1]
            assert metrics == ({} if score is None else {"acc": score})
            if damaged and kept[-1] in damaged:
                break  # the run itself goes back to an earlier step
    assert steps_in(tmp_path) == [step for step in kept if step not in damaged]
    warnings = capfd.readouterr().err.splitlines()
    assert [line for line in warnings if "is set aside as" not in line] == (
        [f"warning: The next best checkpoint is used, step {restored}."] if damaged else []
    )
    for step in damaged:
        assert (tmp_path / f"{step}.damaged").is_dir()
        assert any(f"Checkpoint {tmp_path}/{step} is damaged" in line for line in warnings)


@pytest.mark.slow
@pytest.mark.walk
def test_when_no_checkpoint_is_complete_the_best_is_named_and_nothing_is_set_aside(tmp_path):
    saved(tmp_path, 0.9, 0.1, 0.5)
    damage(tmp_path, 10, 20, 30)
    with Checkpoints(tmp_path, {"run": 1}, "acc") as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=f"{tmp_path}/10 is damaged"):
            checkpoints.restore_best(30, state_of(0)["trainable"])
        assert checkpoints.steps() == [10, 20, 30]


def test_metrics_can_be_added_to_a_saved_step(tmp_path):
    with Checkpoints(tmp_path, {"run": 1}, "acc") as checkpoints:
        checkpoints.save(10, state_of(10), {"acc": 0.2})
        checkpoints.save(20, state_of(20), seed=1)
        checkpoints.save(20, state_of(20), {"acc": 0.6}, seed=2)
        assert checkpoints.best_step() == 20
        assert checkpoints.manifest(20)["metrics"] == {"acc": 0.6}
        assert checkpoints.manifest(20)["seed"] == 2
        checkpoints.save(30, state_of(30), {"acc": 0.4})
        checkpoints.save(40, state_of(40), {"acc": 0.5})
        checkpoints.wait()
        assert steps_in(tmp_path) == [20, 30, 40]  # the best and the two latest
        assert_equal(checkpoints.restore(20, state_of(0)), state_of(20))


@pytest.mark.parametrize(
    ("identity", "found"),
    [({"run": 2}, "whose run is 1, expected 2"), ({"run": 1, "base": "x"}, "whose base is absent")],
)
def test_folder_of_another_run_is_refused_and_left_alone(tmp_path, identity, found):
    saved(tmp_path, 0.1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UsageError, match=found) as error:
        Checkpoints(tmp_path, identity)
    assert "\n" not in str(error.value)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_identity_may_hold_tuples(tmp_path):
    for _ in range(2):
        with Checkpoints(tmp_path, {"experts": ("a", "b")}) as checkpoints:
            if checkpoints.latest_step() is None:
                checkpoints.save(1, state_of(1))


@pytest.mark.parametrize("damage", ["missing", "cut short", "not an object"])
def test_checkpoint_without_its_manifest_is_ignored(tmp_path, damage):
    saved(tmp_path, 0.9, 0.1)
    file = tmp_path / "20" / "manifest" / "metadata"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text(file.read_text()[:-5] if damage == "cut short" else "[]")
    with Checkpoints(tmp_path, {"run": 1}, "acc") as checkpoints:
        assert checkpoints.latest_step() == 10
        checkpoints.save(20, state_of(20))
        assert_equal(checkpoints.restore(20, state_of(0)), state_of(20))


def test_what_a_kill_has_left_of_a_deletion_is_removed_without_a_word(tmp_path, capfd):
    saved(tmp_path, 0.9, 0.1)
    shutil.rmtree(tmp_path / "10" / "manifest")
    with Checkpoints(tmp_path, {"run": 1}, "acc") as checkpoints:
        assert checkpoints.steps() == [20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20"]
    assert "warning" not in capfd.readouterr().err


def test_checkpoints_whose_names_were_exchanged_are_named_and_left(tmp_path):
    saved(tmp_path, None, None)
    for old, new in (("10", "x"), ("20", "10"), ("x", "20")):
        (tmp_path / old).rename(tmp_path / new)
    with pytest.raises(PemtError, match="10 holds the checkpoint of step 20, expected .* step 10"):
        Checkpoints(tmp_path, {"run": 1})
    assert steps_in(tmp_path) == [10, 20]


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path):
    saved(tmp_path, None)
    (tmp_path / "10" / "manifest" / "metadata").unlink()
    os.mkfifo(tmp_path / "10" / "manifest" / "metadata")
    with pytest.raises(PemtError, match="cannot be read: it is a pipe or device"):
        Checkpoints(tmp_path, {"run": 1})


def test_a_folder_named_by_a_digit_that_is_no_number_is_no_checkpoint(tmp_path):
    (tmp_path / "\u00b2").mkdir()
    (tmp_path / "007").mkdir()
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        assert checkpoints.steps() == []


def test_numbered_folder_of_the_user_is_not_touched(tmp_path):
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="2024 is not a checkpoint"):
        Checkpoints(tmp_path, {"run": 1})
    assert (tmp_path / "2024" / "thesis.txt").read_text() == "mine"


def test_flipped_byte_of_a_leaf_is_found_and_named(tmp_path, capfd):
    random = np.random.default_rng(0)
    params = {"a/kernel": random.normal(size=(40, 30)).astype("f4"), "b": np.arange(5.0)}
    target = jax.tree.map(jnp.asarray, {"trainable": params})
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        checkpoints.save(10, target)
        checkpoints.wait()
        sha256 = checkpoints.manifest(10)["leaves"]["trainable/a/kernel"]["sha256"]
    files = [path for path in (tmp_path / "10" / "state").rglob("*") if path.is_file()]
    (biggest,) = (path for path in files if path.stat().st_size > 4 * 40 * 30 * 0.9)
    whole = biggest.read_bytes()
    for position in (1000, 2000, 3000):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        biggest.write_bytes(broken)
        with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
            with pytest.raises(PemtError, match=f"the bytes of trainable/a/kernel .*{sha256}"):
                checkpoints.restore(10, target)
    biggest.write_bytes(whole)
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        assert_equal(checkpoints.restore(10, target), target)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_flip_anywhere_is_found_or_harmless_and_says_one_sentence(tmp_path, capfd):
    random = np.random.default_rng(1)
    saved(tmp_path, 0.1)
    for path in (tmp_path / "10" / "state").rglob("*"):
        if path.is_file():
            whole = path.read_bytes()
            broken = bytearray(whole)
            broken[random.integers(0, len(whole))] ^= 0x04
            path.write_bytes(broken)
            with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
                try:
                    assert_equal(checkpoints.restore(10, state_of(0)), state_of(10))
                except PemtError as error:
                    assert "damaged" in str(error) and "\n" not in str(error)
            path.write_bytes(whole)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_to_any_file_is_harmless_or_found(tmp_path, damage):
    saved(tmp_path / "whole", 0.5, 0.1)
    names = [
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole/20").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    assert {"metadata", "metrics", "_CHECKPOINT_METADATA"} <= {name.name for name in names}
    for i, name in enumerate(names):
        file = shutil.copytree(tmp_path / "whole", tmp_path / str(i)) / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.unlink()
        if damage != "remove":
            file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
        with Checkpoints(tmp_path / str(i), {"run": 1}, "acc") as checkpoints:
            assert checkpoints.best_step() == 10
            if checkpoints.latest_step() == 20:
                try:
                    assert_equal(checkpoints.restore(20, state_of(0)), state_of(20))
                except DamagedCheckpoint:
                    continue
            else:
                assert (tmp_path / str(i) / "20.damaged").is_dir()
            checkpoints.save(30, state_of(30), {"acc": 0.2})
            assert checkpoints.best_step() == 10


def test_a_crash_between_a_manifest_and_orbaxs_copy_of_its_score_loses_no_best(tmp_path):
    saved(tmp_path, None)
    manifest = manifests.read_manifest(tmp_path / "10")
    score = {"value": 0.9, "step": 10}
    manifests.replace_manifest(tmp_path / "10", manifest | {"score": score})
    with Checkpoints(tmp_path, {"run": 1}, "acc") as checkpoints:
        for step in (20, 30, 40):
            checkpoints.save(step, state_of(step), {"acc": 0.1})
        checkpoints.wait()
        assert steps_in(tmp_path) == [10, 30, 40] and checkpoints.best_step() == 10


def test_manifest_and_arrays_that_differ_are_found(tmp_path):
    saved(tmp_path, 0.1)
    file = tmp_path / "10" / "manifest" / "metadata"
    manifest = json.loads(file.read_text())
    manifest["leaves"]["trainable/prompt/embedding"]["sha256"] = "0" * 64
    del manifest["sha256"]
    manifests.replace_manifest(tmp_path / "10", manifest)
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        with pytest.raises(PemtError, match="damaged: the bytes of trainable/prompt/embedding "):
            checkpoints.restore(10, state_of(0))


def test_state_of_other_leaves_or_shapes_is_one_sentence(tmp_path):
    saved(tmp_path, 0.1)
    wider, fewer, more = state_of(0), state_of(0), state_of(0)
    wider["trainable"]["prompt/embedding"] = jnp.zeros((4, 8))
    del fewer["trainable"]["prompt/embedding"]
    more["trainable"]["gate"] = jnp.zeros(2)
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        for target, found in [
            (wider, r"prompt/embedding of shape \(3, 8\), expected \(4, 8\)"),
            (fewer, "has trainable/prompt/embedding"),
            (more, "has no trainable/gate"),
        ]:
            with pytest.raises(PemtError, match=found):
                checkpoints.restore(10, target)


def test_record_is_of_the_bytes_in_c_order_whatever_the_layout():
    array = np.arange(12, dtype="f4").reshape(3, 4)
    record = manifests.leaf_record(np.asfortranarray(array))
    assert record == manifests.leaf_record(jnp.asarray(array))
    assert record["shape"] == [3, 4] and record["dtype"] == "float32"
    assert manifests.leaf_record(np.float32(1))["shape"] == []
    assert manifests.leaf_record(array.astype(ml_dtypes.bfloat16))["dtype"] == "bfloat16"


SAVER = textwrap.dedent("""
    import itertools, sys
    import jax.numpy as jnp
    from pemt_jax.checkpoints.manager import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], {"run": 1})
    start = checkpoints.latest_step() or 0
    for step in itertools.count(start + 1):
        state = {"step": jnp.int32(step), "trainable": {"w": jnp.full((500, 1000), float(step))}}
        checkpoints.save(step, state)
        print(step, flush=True)
""")


def test_kill_while_saving_leaves_the_old_or_the_new_state(tmp_path):
    reached = 0
    for lines in (2, 4, 7):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(lines):  # a printed step is being written behind save()
            announced = int(process.stdout.readline())
        process.kill()
        process.communicate()
        with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
            step = checkpoints.latest_step()
            # The steps before the announced one were finished before its save began.
            assert max(reached, announced - 1) <= step
            target = {"step": jnp.int32(0), "trainable": {"w": jnp.zeros((500, 1000))}}
            found = checkpoints.restore(step, target)
            assert int(found["step"]) == step
            np.testing.assert_array_equal(found["trainable"]["w"], float(step))
            assert steps_in(tmp_path)[-1] == step and len(steps_in(tmp_path)) <= 3
        reached = step


def test_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path):
    saved(tmp_path, 0.1)
    state = {"trainable": {"w": jnp.asarray(np.random.default_rng(0).normal(size=100_000))}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path, {"run": 1})
    try:
        # No file may grow beyond 20 kB: the system refuses the write as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(PemtError, match="could not be written") as error:
            checkpoints.save(20, state)
            checkpoints.wait()
        assert "\n" not in str(error.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(tmp_path, {"run": 1}) as again:
        assert again.latest_step() == 10
        assert_equal(again.restore(10, state_of(0)), state_of(10))


def test_state_saved_on_four_devices_is_restored_on_one(tmp_path):
    script = textwrap.dedent("""
        import sys
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from pemt_jax.parallel import partitioning
        from pemt_jax.checkpoints.manager import Checkpoints
        mesh = partitioning.make_mesh(model=2)
        w = jax.device_put(np.arange(32.0, dtype="f4").reshape(4, 8),
                           NamedSharding(mesh, PartitionSpec(None, "model")))
        with Checkpoints(sys.argv[1], {"run": 1}) as checkpoints:
            checkpoints.save(1, {"trainable": {"w": w}})
    """)
    flags = "--xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        found = checkpoints.restore(1, {"trainable": {"w": jnp.zeros((4, 8))}})
    expected = jnp.arange(32.0).reshape(4, 8)
    np.testing.assert_array_equal(found["trainable"]["w"], expected)


def test_stage_2_checkpoint_of_t5_base_with_its_optimizer_is_under_30_mb(tmp_path):
    experts = tuple(f"source_{i}" for i in range(6))
    options = PemtConfig(
        prompt_length=40, expert_names=experts, source_prompt_lengths=(40,) * 6, adapter_dim=48
    )
    model = PemtModel(T5Config(), options)
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    params = jax.eval_shape(
        lambda: model.get_initial_variables(jax.random.key(0), {n: (1, 8) for n in names})
    )["params"]
    trainable, _ = split(params, get_method("pemt_target"))
    random = np.random.default_rng(0)

    def noise(leaf):  # nothing a compression could make smaller
        return jnp.asarray(random.normal(size=leaf.shape)).astype(leaf.dtype)

    shapes = jax.eval_shape(make_optimizer("adamw").init, trainable)
    state = jax.tree.map(noise, {"trainable": trainable, "opt_state": shapes})
    with Checkpoints(tmp_path, {"run": 1}) as checkpoints:
        checkpoints.save(1, state)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    trained = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    assert trained == 2_113_152 + 768 * 40  # the paper's set: gates, adapters, norms, prompt
    assert size < 30e6
