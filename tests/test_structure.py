"""tests/structure.py finds what it is there to find, and files about the repository are true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from lower_bounds import lower_bounds
from packaging.utils import canonicalize_name
from packaging.version import Version

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LAYERS = re.search(r"^layers =\n((?: .*\n)+)", (ROOT / ".importlinter").read_text(), re.MULTILINE)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with every room of .importlinter, all of them empty."""
    for room in re.findall(r"\w+", LAYERS[1]):
        mapped = room in ("tasks", "configs")
        folder = tmp_path / room if mapped else tmp_path / "pemt_jax" / room
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (tmp_path / "pemt_jax/__init__.py").touch()
    return tmp_path


def structure(checkout: Path, *flags: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, TESTS / "structure.py", checkout, *(flags or ["--no-types"])],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_package_within_the_limits_passes_and_its_numbers_are_printed(checkout):
    (checkout / "tasks/targets.py").write_text("x = 1\n" * 300)
    (checkout / "pemt_jax/runs/publish.py").write_text("from pemt_jax.tasks import targets\n")
    code, said = structure(checkout)
    assert code == 0, said
    assert "longest module: tasks/targets.py, 300 lines" in said
    assert "import cycles: 0" in said and "order of the rooms: kept" in said


def test_a_module_of_301_lines_and_a_folder_of_13_modules_fail(checkout):
    (checkout / "tasks/targets.py").write_text("x = 1\n" * 301)
    for number in range(13):
        (checkout / f"pemt_jax/data/part_{number}.py").touch()
    code, said = structure(checkout)
    assert code == 1
    assert "tasks/targets.py has 301 lines, expected at most 300." in said
    assert "pemt_jax/data has 13 modules, expected at most 12." in said


def test_a_cycle_inside_a_room_fails_even_when_an_import_is_inside_a_function(checkout):
    (checkout / "pemt_jax/data/a.py").write_text("from pemt_jax.data import b\n")
    (checkout / "pemt_jax/data/b.py").write_text("import pemt_jax.data.c\n")
    (checkout / "pemt_jax/data/c.py").write_text("def f():\n    import pemt_jax.data.a\n")
    code, said = structure(checkout)
    assert code == 1 and "import cycles: 1" in said
    names = "pemt_jax.data.a, pemt_jax.data.b, pemt_jax.data.c"
    assert f"These modules import each other: {names}." in said


def test_an_import_against_the_order_fails_in_the_mapped_folder_too(checkout):
    (checkout / "tasks/targets.py").write_text("import pemt_jax.runs\n")
    code, said = structure(checkout)
    assert code == 1
    assert "pemt_jax.tasks is not allowed to import pemt_jax.runs" in said


def test_a_new_module_at_the_top_needs_a_place_in_the_order(checkout):
    (checkout / "pemt_jax/helpers.py").touch()
    code, said = structure(checkout)
    assert code == 1
    assert "must be declared as a layer" in " ".join(said.split()) and "helpers" in said


def test_commands_inside_rooms_may_import_the_command_line(checkout):
    for folder in ("tasks", "pemt_jax/library"):
        (checkout / folder / "__main__.py").write_text("from pemt_jax.cli import command\n")
    (checkout / "pemt_jax/cli/command.py").touch()
    assert structure(checkout)[0] == 0


def test_a_type_error_is_named_by_its_place_in_the_checkout(checkout):
    (checkout / "tasks/targets.py").write_text('\nlimit: int = "twelve"\n')
    code, said = structure(checkout, "--")
    assert code == 1
    assert "tasks/targets.py:2:14: " in said and "(reportAssignmentType)" in said


def test_the_guided_tour_has_at_most_20_files_all_of_which_exist():
    text = (ROOT / ".github/CONTRIBUTING.md").read_text()
    stops = re.findall(r"^\d+\. `(pemt_jax/[\w/]+\.py)`", text, re.MULTILINE)
    assert 10 < len(stops) <= 20
    assert not [stop for stop in stops if not (ROOT / stop).is_file()]


def test_every_requirement_has_a_verified_version_at_or_above_its_lower_bound():
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "tests/constraints.txt").read_text(), re.M)
    verified = {canonicalize_name(name): Version(version) for name, version in pins}
    lowest = lower_bounds()
    assert "jax" in lowest and "pytest" in lowest
    for name, version in lowest.items():
        assert verified[canonicalize_name(name)] >= Version(version), name
