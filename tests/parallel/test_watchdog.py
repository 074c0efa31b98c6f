"""The watchdog alone, over a store in which the other process does as a test says."""

import threading

import pytest

from pemt_jax.parallel import watchdog
from pemt_jax.parallel.environment import Limits


class Store:
    """The coordinator's key-value store, in which process 1 does as `beats` says."""

    def __init__(self, beats, failed=()):
        self.beats, self.failed = beats, list(failed)

    def key_value_set(self, key, value, allow_overwrite):
        pass

    def key_value_dir_get(self, folder):
        if folder.endswith("failed"):
            return self.failed
        return [("pemt_jax/beat/1", next(self.beats))]


def beats_at(place):
    return lambda: (f"{number} {place}" for number in range(10**6))


@pytest.mark.parametrize(
    "beats, failed, expected",
    [
        (
            lambda: iter(lambda: "7 ", None),
            (),
            "Process 1 of 2 has not been heard of for 0.3 seconds",
        ),
        (
            beats_at(13),
            (),
            "Process 1 of 2 has stood at step 5 for 0.3 seconds while others went on",
        ),
        (
            beats_at(15),
            (),
            "Process 0 of 2 has stood at step 5 for 0.3 seconds while others went on",
        ),
        (beats_at(14), (), None),  # all wait
        (beats_at(""), (), None),  # it does what takes any time
        (
            beats_at(""),
            [("pemt_jax/failed/1", "No such file.")],
            "Process 1 of 2 failed: No such file.",
        ),
    ],
)
def test_the_watchdog_ends_a_process_for_silence_or_failure_of_another(
    monkeypatch, beats, failed, expected
):
    for name, value in ("BEAT", 0.05), ("GRACE", 0.1):
        monkeypatch.setattr(watchdog, name, value)
    said, over = [], threading.Event()

    def die(sentence, linger):
        said.append(sentence)
        over.set()

    monkeypatch.setattr(watchdog, "die", die)
    dog = watchdog.Watchdog(Store(beats(), failed), "127.0.0.1:1", 0, 2, Limits(silence=0.3))
    dog.place = 14  # after step 5 was given to the devices
    over.wait(1.0)
    dog.stop()
    assert (expected is None and not said) or said[0].startswith(expected)
