"""The faults of table.py in a bucket, and a sample of kill.py there."""

import json
from pathlib import Path

import bucket
import pytest
from table import ROWS, place_of
from tiny_system import world_fixture  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def places():
    """The place, once the first test has a world, and what ends it."""
    made = []
    yield made
    for _, context in made:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("row", ROWS)
def test_a_fault_in_a_bucket_is_one_sentence_and_loses_nothing(
    world, places, tmp_path_factory, row
):
    bucket.needed()
    if not places:
        context = place_of("gs", world, tmp_path_factory.mktemp("gs"))
        places.append((context.__enter__(), context))
    assert ROWS[row](places[0][0])


def test_a_run_in_a_bucket_that_is_killed_is_the_run_that_was_left_alone(world):
    bucket.needed()
    script = Path(__file__).with_name("kill.py")
    done = world.python(script, "--storage=gs", "--seed=3", "--runs=2", f"--base={world.base}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["mismatches"] == {} and report["runs"] == 2 and report["kills"] >= 2
