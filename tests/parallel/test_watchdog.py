"""The watchdog alone, over a store in which the other processes do as a test says."""

import itertools
import socket
import threading

import pytest

from pemt_jax.common.errors import PeerLost
from pemt_jax.parallel import watchdog
from pemt_jax.parallel.environment import Limits

LOST = PeerLost.exit_code
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


class Store:
    """The coordinator's key-value store; `beats` are an iterator for each process after 0."""

    def __init__(self, beats=(), failed=(), lifeline=None):
        self.beats, self.failed, self.lifeline = beats, list(failed), lifeline

    def key_value_set(self, key, value, allow_overwrite=False):
        pass

    def key_value_dir_get(self, folder):
        if folder.endswith("failed"):
            return self.failed
        return [(f"pemt_jax/beat/{1 + n}", next(beats)) for n, beats in enumerate(self.beats)]

    def blocking_key_value_get(self, key, timeout_in_ms):
        assert key == watchdog.LIFELINE
        return str(self.lifeline)


def beats_at(*places):
    """At each place for 0.5 seconds, at the last one for good."""
    turns = itertools.chain(*([place] * 10 for place in places), itertools.repeat(places[-1]))
    return (f"{number} {place}" for number, place in enumerate(turns))


@pytest.fixture
def watch(monkeypatch):
    """Run process `index` for `seconds`; return each (exit code, sentence) that would end it."""

    def run(store, seconds=1.0, index=0, count=2, read=0.3, place=14):
        for name, value in ("BEAT", 0.05), ("GRACE", 0.1):
            monkeypatch.setattr(watchdog, name, value)
        said, over = [], threading.Event()

        def die(sentence, code=LOST, linger=0.0):
            said.append((code, sentence))
            over.set()

        monkeypatch.setattr(watchdog, "die", die)
        dog = watchdog.Watchdog(store, "127.0.0.1", index, count, Limits(silence=0.3, read=read))
        dog.place = place
        over.wait(seconds)
        dog.stop()
        return said

    return run


@pytest.mark.parametrize(
    "beats, failed, expected",
    [
        (iter(lambda: "7 ", None), (), "Process 1 of 2 has not been heard of for 0.3 seconds"),
        (beats_at(13), (), "Process 1 of 2 has been at step 5 for 0.3 seconds while others wait"),
        (beats_at(15), (), "Process 0 of 2 has been at step 5 for 0.3 seconds while others wait"),
        (beats_at(12), (), "Process 1 of 2 has been reading its batch at step 5 for 0.3 seconds"),
        (beats_at(14), (), None),  # all wait
        (beats_at(""), (), None),  # work that takes any time
        (
            beats_at(""),
            [("pemt_jax/failed/1", "2 No such file.")],
            (2, "Process 1 of 2 failed: No such file."),
        ),
    ],
)
def test_the_watchdog_ends_a_process_for_silence_or_failure_of_another(
    watch, beats, failed, expected
):
    said = watch(Store([beats], failed))  # process 0 has given step 5 to the devices
    if expected is None:
        assert not said
    else:
        code, sentence = expected if isinstance(expected, tuple) else (LOST, expected)
        assert said[0][0] == code and said[0][1].startswith(sentence)


def test_a_read_may_take_longer_than_silence(watch):
    assert not watch(Store([beats_at(12)]), read=5)
    assert watch(Store([beats_at(12)]), read=0.6, seconds=2)


def test_those_that_wait_for_a_slow_read_are_not_blamed(watch):
    """Process 1 reads, process 2 waits for it inside its next step and process 0 after its own."""
    reads_then_waits = beats_at(12, 12, 17)
    assert not watch(Store([reads_then_waits, beats_at(16, 16, 17)]), place=17, count=3, read=5)
    # When the read is over, a process that stays behind has its own time from then on.
    said = watch(Store([beats_at(12, 17), beats_at(16)]), place=17, count=3, read=5, seconds=2)
    assert said[0][1].startswith("Process 2 of 3 has been at step 6 for 0.3 seconds")


def test_nobody_is_blamed_while_another_does_work_that_takes_any_time(watch):
    assert not watch(Store([beats_at(13), beats_at("")]), count=3)


@pytest.mark.parametrize(
    "failed, code, expected", [("", LOST, "has died"), ("1 Disk full.", 1, " failed: Disk full.")]
)
def test_a_process_ends_at_once_when_process_0_is_gone(watch, failed, code, expected):
    server = socket.create_server(("127.0.0.1", 0))
    store = Store([beats_at(14)], lifeline=server.getsockname()[1])
    store.failed = [("pemt_jax/failed/0", failed)] if failed else []
    threading.Timer(0.2, server.close).start()
    found, sentence = watch(store, index=1)[0]
    assert found == code and sentence.startswith("Process 0 of 2") and expected in sentence


def test_a_network_without_or_with_a_broken_connection_does_no_harm(watch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Timer(0.1, lambda: server.accept()[0].close()).start()  # as a router may do
        assert not watch(Store([beats_at(14)], lifeline=port), index=1, seconds=0.25)
    assert not watch(Store([beats_at(14)], lifeline=port), index=1, seconds=0.25)  # no such port
