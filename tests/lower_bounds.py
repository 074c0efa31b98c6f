"""Print `NAME==VERSION` for the lower bound of everything that setup.py requires, the extra `test`
included: a constraints file for `.ci/run --lowest`. Needs nothing but Python.
"""

import ast
import re
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.py"


def requirements() -> list[str]:
    """install_requires and the extra `test` of setup.py, as they are written there."""
    calls = [node for node in ast.walk(ast.parse(SETUP.read_text())) if isinstance(node, ast.Call)]
    setup = next(call for call in calls if getattr(call.func, "id", None) == "setup")
    given = {keyword.arg: keyword.value for keyword in setup.keywords}
    extras = ast.literal_eval(given["extras_require"])
    return ast.literal_eval(given["install_requires"]) + extras["test"]


def lower_bounds() -> dict[str, str]:
    """{package: lowest version}."""
    return dict(
        re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
        for requirement in requirements()
    )


if __name__ == "__main__":
    for name, version in lower_bounds().items():
        print(f"{name}=={version}")
