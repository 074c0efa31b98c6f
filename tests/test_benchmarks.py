"""What the benchmarks do with times: order, ratios, rows, reports. Nothing here is timed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).with_name("benchmarks")


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_what_is_compared_runs_in_turn():
    import timing

    called = []
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = timing.interleaved(runs, repeats=2)
    assert called == list("ab" * 3)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_ratios_of_medians_and_of_minima():
    import timing

    found = timing.compare({"a": [3.0, 2.0, 10.0], "b": [1.0, 2.0, 2.0]}, "a", "b")
    assert (found["ratio_of_medians"], found["ratio_of_minima"]) == (1.5, 2.0)
    assert found["seconds"]["a"] == {"min": 2.0, "median": 3.0, "repeats": 3, "spread": 8 / 3}


@pytest.mark.parametrize(
    "value,target,at_least,ok",
    [
        (1.2, 1.3, False, True),
        (1.4, 1.3, False, False),
        (3.1, 3.0, True, True),
        (2.9, 3.0, True, False),
        (None, 0.35, True, None),
        (1.1, None, False, None),
    ],
)
def test_a_row_is_reached_missed_or_not_measured(value, target, at_least, ok):
    import timing

    assert timing.row(value, target, at_least)["ok"] is ok


def test_instructions_are_counted_for_their_piece():
    from pieces import piece_of

    forward = "jit(train_step)/jvp(Transformer)/Transformer.encode/encoder/layers_0/"
    backward = "jit(train_step)/transpose(jvp(Transformer))/Transformer.decode/decoder/layers_1/"
    assert piece_of(forward + "attention/query/dot_general") == ("forward", "encoder", "attention")
    assert piece_of(forward + "mlp/wi/dot_general")[2] == "feed-forward"
    assert piece_of(forward + "mlp/experts/dot_general")[2] == "experts"
    assert piece_of(forward + "mlp/bler,erq->bleq/dot_general")[2] == "gate and loss"
    assert piece_of(backward + "mlp/adapter/up/dot_general") == ("backward", "decoder", "adapter")
    assert piece_of("jit(train_step)/mul") == ("update", "around", "optimizer")


def test_a_report_keeps_the_rows_that_were_not_measured_again(tmp_path):
    import shutil

    copied = tmp_path / "benchmarks"
    shutil.copytree(BENCHMARKS, copied, ignore=shutil.ignore_patterns("*.md", "*.json", "*.svg"))
    (copied / "memory.py").write_text(
        "import json, timing\n"
        "details = {'ratio': 0.5, 'seconds': {'a': timing.summary([1.0, 2.0])}}\n"
        "print(json.dumps({'stage2_memory_over_full': timing.row(0.5, 0.65, **details)}))\n"
    )
    for row in ("stage2_memory_over_full", "gpu_mfu"):
        done = subprocess.run(
            [sys.executable, copied / "run_all.py", "--json", "--rows", row],
            capture_output=True,
            text=True,
            check=True,
        )
        printed = json.loads(done.stdout)
        assert list(printed) == [row]
    assert printed["gpu_mfu"] == {"value": None, "target": 0.35, "ok": None}
    report = (copied / "RESULTS.md").read_text()
    assert re.search(r"\| `stage2_memory_over_full` \| 0.5 \| <= 0.65 \| yes \| 1 \|", report)
    assert re.search(r"\| `gpu_mfu` \| null \| >= 0.35 \|  \| \d \|", report)
    assert "| seconds, a | 1 | 1.5 | 0.667 | 2 |" in report


@pytest.mark.slow
@pytest.mark.parametrize(
    "trick", ["experts in rank space", "bank as a matrix", "softmax divides last"]
)
def test_what_a_trick_is_compared_with_computes_the_same(trick):
    import jax
    import numpy as np
    import tricks
    from tiny_model import T5, TARGET, jit, make_batch, random_params

    from pemt_jax.model.pemt_model import PemtModel

    params, batch = random_params(T5, TARGET), make_batch([3, 6], [4, 2], S=6, T=5)

    def value():
        return jit(jax.value_and_grad(lambda p: PemtModel(T5, TARGET).loss_fn(p, batch, None)[0]))(
            params
        )

    loss, gradients = value()
    patches, _, _ = tricks.alternatives(T5)[trick]
    with tricks.patched(patches):
        other, others = value()
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    frozen = ("lora_a", "lora_b")  # the bank's gradients are nobody's

    def same(path, a, b):
        return (
            np.testing.assert_allclose(  # noqa: E731
                a, b, rtol=1e-3, atol=1e-5
            )
            if path[-1].key not in frozen
            else None
        )

    jax.tree_util.tree_map_with_path(same, gradients, others)
