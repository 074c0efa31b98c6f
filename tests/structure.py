"""The structure of the package: its limits, the order of its rooms and its types.

    python tests/structure.py               # prints the numbers, exits with 1 above a limit
    python tests/structure.py --no-types    # without pyright, in a second or two

Limits: 12 modules per folder (`__init__` and `__main__` not counted), 300 lines per module, no
import cycle, the layers of .importlinter, no error of pyright (.pyright.json).

tasks/ and configs/ are top-level folders that are installed as pemt_jax.tasks and pemt_jax.configs.
grimp, import-linter and pyright want a package in one folder, so all three read a temporary copy in
which the package is assembled as it is installed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import grimp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = "pemt_jax"
MAPPED = ("tasks", "configs")  # as in setup.py's package_dir
MODULES_PER_FOLDER = 12
LINES_PER_MODULE = 300


def assemble(checkout: Path, folder: Path) -> None:
    """Copy the package of `checkout` to `folder`/pemt_jax, with tasks/ and configs/ inside it."""
    ignored = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(checkout / PACKAGE, folder / PACKAGE, ignore=ignored)
    for name in MAPPED:
        shutil.copytree(checkout / name, folder / PACKAGE / name, ignore=ignored)
    shutil.copy(CHECKOUT / ".importlinter", folder)
    shutil.copy(CHECKOUT / ".pyright.json", folder / "pyrightconfig.json")


def in_checkout(path: Path | str) -> str:
    """The path in the checkout of a path in the assembled package."""
    first, _, rest = Path(path).as_posix().partition("/")
    return rest if first == PACKAGE and rest.split("/")[0] in MAPPED else f"{first}/{rest}"


def modules_per_folder(modules: Iterable[str]) -> Counter[str]:
    return Counter(
        str(Path(module).parent)
        for module in modules
        if Path(module).stem not in ("__init__", "__main__")
    )


def import_cycles(graph: grimp.ImportGraph) -> list[list[str]]:
    """The strongly connected components of more than one module, each sorted by name."""
    modules = sorted(graph.modules)
    number = {module: index for index, module in enumerate(modules)}
    edges = [
        (number[module], number[imported])
        for module in modules
        for imported in graph.find_modules_directly_imported_by(module)
    ]
    rows, columns = np.asarray(edges, np.int32).reshape(-1, 2).T
    matrix = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(modules),) * 2)
    _, labels = connected_components(matrix.tocsr(), connection="strong")
    components = defaultdict(list)
    for module, label in zip(modules, labels, strict=True):
        components[label].append(module)
    return [component for component in components.values() if len(component) > 1]


def layer_faults(folder: Path) -> list[str]:
    """What import-linter says about broken contracts, by line; nothing when all are kept."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=folder, capture_output=True, text=True
    )
    if not done.returncode:
        return []
    said = done.stdout + done.stderr
    _, _, broken = said.partition("Broken contracts\n----------------\n")
    return [line for line in (broken or said).splitlines() if line]


def type_faults(folder: Path) -> list[str]:
    """The errors of pyright, `FILE:LINE:COLUMN: MESSAGE (RULE)`."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):  # 1: errors were found; above: pyright itself failed
        raise SystemExit(f"pyright failed with exit code {done.returncode}: {done.stderr.strip()}")
    faults = []
    for found in json.loads(done.stdout)["generalDiagnostics"]:
        if found["severity"] == "error":
            path = in_checkout(Path(found["file"]).relative_to(folder))
            start = found["range"]["start"]
            message = " ".join(found["message"].split())
            place = f"{path}:{start['line'] + 1}:{start['character'] + 1}"
            faults.append(f"{place}: {message} ({found.get('rule', 'syntax')})")
    return faults


def check(checkout: Path, types: bool) -> list[str]:
    """Print the numbers of `checkout`; return the faults found, one line each."""
    with tempfile.TemporaryDirectory(prefix="structure-") as temporary:
        folder = Path(temporary).resolve()
        assemble(checkout, folder)
        lines = {
            in_checkout(path.relative_to(folder)): len(path.read_bytes().splitlines())
            for path in folder.rglob("*.py")
        }
        sys.path.insert(0, str(folder))
        graph = grimp.build_graph(PACKAGE, cache_dir=None)
        sizes, cycles, layers = (
            modules_per_folder(lines),
            import_cycles(graph),
            layer_faults(folder),
        )
        errors = type_faults(folder) if types else []

    (largest, size), longest = sizes.most_common(1)[0], max(lines, key=lines.__getitem__)
    print(f"{sum(lines.values())} lines in {len(lines)} modules")
    print(f"largest folder: {largest}, {size} modules (at most {MODULES_PER_FOLDER})")
    print(f"longest module: {longest}, {lines[longest]} lines (at most {LINES_PER_MODULE})")
    print(f"import cycles: {len(cycles)}")
    print(f"order of the rooms: {'broken' if layers else 'kept'}")
    if types:
        print(f"errors of pyright: {len(errors)}")
    return [
        *(
            f"{name} has {count} modules, expected at most {MODULES_PER_FOLDER}."
            for name, count in sizes.most_common()
            if count > MODULES_PER_FOLDER
        ),
        *(
            f"{name} has {count} lines, expected at most {LINES_PER_MODULE}."
            for name, count in sorted(lines.items())
            if count > LINES_PER_MODULE
        ),
        *(f"These modules import each other: {', '.join(cycle)}." for cycle in cycles),
        *layers,
        *errors,
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", nargs="?", type=Path, default=CHECKOUT)
    parser.add_argument("--no-types", action="store_true", help="leave out pyright")
    arguments = parser.parse_args(argv)
    faults = check(arguments.checkout, not arguments.no_types)
    if faults:
        print("", *faults, sep="\n", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
