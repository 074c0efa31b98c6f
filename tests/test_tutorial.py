"""The tutorial notebook: all cells run in a fresh kernel and folder, with the results promised."""

import ast
import json
import os
import sys
import time
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from pemt_jax.library.artefact import read_card

NOTEBOOK = Path(__file__).parents[1] / "launch" / "tutorial.ipynb"
EXPERTS = ("cafes", "tweets_lora", "vader_domain", "vader_movies")


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_valid_and_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None, cell.id
        ast.parse(TransformerManager().transform_cell(cell.source))


@pytest.mark.slow
def test_all_cells_run_from_rows_to_the_report(notebook, tmp_path, monkeypatch):
    # As in an activated environment; nothing is read from or written to the user's folders.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("PEMT_JAX_CACHE", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    start = time.monotonic()
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    assert time.monotonic() - start < 600

    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    folder = tmp_path / "runs" / "tutorial"
    card = read_card(folder / "library" / "cafes")
    assert card.metrics["accuracy"] > card.config["majority_class"]["average"] + 20
    assert not (folder / "tweets_lora" / "pemt_card.json").exists()  # as a public adapter
    mixed, alone = (
        json.loads((folder / run / "evaluation" / "hotels_8-test.json").read_text())
        for run in ("mixed", "no_experts")
    )
    gates = [mixed[f"gate/{name}"] for name in EXPERTS]
    assert min(gates) >= 0 and sum(gates) == pytest.approx(1, abs=1e-4)
    assert mixed["accuracy"] > 75 and 0 <= alone["accuracy"] <= 100  # guessing: 50
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and all(name in page for name in (*EXPERTS, "no_experts"))
