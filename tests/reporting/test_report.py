"""The page: one file that needs nothing, tells the truth and can be read by anyone."""

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_runs import Page, copies, fake_run
from tiny_system import EXPERTS, world_fixture  # noqa: F401

from pemt_jax import report
from pemt_jax.common.errors import UsageError
from pemt_jax.finished_config import FinishedConfig
from pemt_jax.reporting import gates as reading
from pemt_jax.reporting.page import render, write_report
from pemt_jax.reporting.records import find_runs
from pemt_jax.runs.finished import open_run
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

HOSTILE = '<script>alert("1")</script><img src=//evil>'
CHECKOUT = Path(__file__).parents[2]


def check(html: str) -> Page:
    """Check what must hold of every page, and return it."""
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "form"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert not page.names("src") and all(link.startswith("#") for link in page.names("href"))
    assert set(re.findall(r"url\((.)", html)) <= {"#"} and "@import" not in html
    ids = page.names("id")
    assert len(ids) == len(set(ids))
    for attribute in ("aria-labelledby", "href", "xlink:href"):
        assert {name.removeprefix("#") for name in page.names(attribute)} <= set(ids)
    for tag, attrs in page.tags:
        if tag == "figure":
            assert attrs["aria-labelledby"]
        if attrs.get("role") == "img":
            assert attrs["aria-label"]
        if attrs.get("class") == "scroll":  # by keyboard too
            assert attrs["tabindex"] == "0" and (attrs.keys() & {"aria-label", "aria-labelledby"})
        if tag == "svg":
            assert attrs["aria-hidden"] == "true" and "width" not in attrs
    assert ("svg" in tags) <= ("figure" in tags)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1 and max(np.diff(headings)) <= 1
    return page


def test_the_gates_are_those_of_the_model_row_by_row(world):
    run = open_run(FinishedConfig(str(world.target)), DEFAULT_VOCABULARY)
    found = reading.read_gates(run, "test")
    rows = world.by_hand(world.target, "test")
    assert found.layers == ["encoder/layers_0/mlp", "decoder/layers_0/mlp"]
    assert found.inputs == [row["input"] for row in rows]
    assert found.targets == [row["target"] for row in rows]
    expected_NE = [row["mean_gate"] for row in rows]
    np.testing.assert_allclose(found.gate_NLE.mean(axis=1), expected_NE, rtol=1e-5)
    apart = found.gate_NLE - found.gate_NLE.mean(axis=0)
    distances = [np.sqrt(sum((layer @ layer) for layer in one) / 2) for one in apart]
    np.testing.assert_allclose(found.distances, distances, atol=1e-9)
    assert reading.read_gates(run).split == "validation"


def test_the_prompts_correlations_are_cosines_of_their_means(world):
    run = open_run(FinishedConfig(str(world.target)), DEFAULT_VOCABULARY)
    names, cosines = reading.prompt_cosines(run)
    assert names == [*EXPERTS, "target: tiny_mood"]
    own = np.asarray(run.built.params["prompt/embedding"]).mean(axis=0)
    bank = np.asarray(run.built.params["source_prompts/embedding"])[1]
    other = bank[: run.built.model.pemt.source_prompt_lengths[1]].mean(axis=0)
    cosine = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
    np.testing.assert_allclose(cosines[1, 2], cosine, rtol=1e-5)
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-5)


def test_a_page_of_a_finished_run_has_every_part(world, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert report.main([str(world.target), "--to", str(target), "--split", "test"]) == 0
    assert capsys.readouterr().out == f"{target}: 1 run\n"
    page = check(target.read_text())
    for part in ("Scores", "Learning curves", "Most typical gates", "Prompt correlations"):
        assert part in page.text
    assert "mean over 8 examples of tiny_mood, split test" in page.text
    metrics = find_runs([str(world.target)])[0].metrics
    assert page.row("target", "validation", "accuracy")[3] == f"{metrics['accuracy']:.4g}"
    assert page.row("0 feed-forward")
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    parameters = page.row("target", "pemt_target", "tiny_mood", "2")[8]
    assert int(parameters.replace(",", "")) > 100


def test_a_folder_of_runs_is_one_page_with_gates_of_those_that_have_some(world, tmp_path):
    assert world.target.is_dir() and world.source.is_dir()
    spec = importlib.util.spec_from_file_location("demo", CHECKOUT / "launch" / "demo.py")
    assert spec and spec.loader
    demo = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(CHECKOUT / "launch"))
    try:
        spec.loader.exec_module(demo)
    finally:
        sys.path.remove(str(CHECKOUT / "launch"))
    runs = tmp_path / "demo"
    runs.mkdir()
    for run in (world.target, world.source):
        (runs / run.name).symlink_to(run)
    assert demo.write_page(runs) == runs / "report.html"
    page = check((runs / "report.html").read_text())
    assert "2 of 2 finished" in page.text and page.text.count("Most typical gates") == 1


def test_a_run_whose_task_is_not_registered_says_so(world, tmp_path, monkeypatch):
    monkeypatch.setattr("seqio.TaskRegistry.names", lambda: [])
    write_report([world.target], tmp_path / "page.html")
    page = check((tmp_path / "page.html").read_text())
    assert re.search(r"no gates [^\n]*task or mixture 'tiny_mood'", page.text)
    assert "Prompt correlations" in page.text


@pytest.mark.parametrize("sources", [1, 24])
def test_any_number_of_sources(tmp_path, sources):
    run = find_runs([str(fake_run(tmp_path / "run"))])[0]
    page = check(render([run], [section(run, sources)]))
    assert page.row("3 self attention")[1:] == ["0.50"] * sources
    assert len(page.row("layer")) == sources + 1


def section(run, sources, text="a film"):
    """What gate_section returns, of gates that are all one half."""
    from pemt_jax.reporting.page import Heat

    names = [f"source {i}" for i in range(sources)]
    values = [0.5] * sources
    gates = reading.Gates(
        "shop", "test", 2000, names, [], np.zeros((2, 1, 1)), [text] * 2, [""] * 2
    )
    example = {"input": text, "target": text, "distance": 0.1, "gate": values}
    return {
        "run": run,
        "fault": "",
        "heats": [Heat("Encoder", "layer", names, [("3 self attention", values)], 0.5)],
        "prompts": Heat("Cosines", "task", names, [(text, [-0.5] * sources)], 1.0),
        "found": gates,
        "most": [example],
        "least": [example],
    }


def test_hostile_text_is_shown_and_nothing_else(tmp_path):
    fake_run(
        tmp_path / "<b>$x_1$",
        task=HOSTILE,
        method=HOSTILE,
        description=HOSTILE,
        settings={HOSTILE: HOSTILE},
    )
    (run,) = find_runs([str(tmp_path)])
    html = render([run], [section(run, 1, HOSTILE)])
    page = check(html)
    assert "<script" not in html and "<img" not in html and "<b>" not in html
    assert page.text.count(HOSTILE) >= 6 and "<b>$x_1$" in page.text


def test_hostile_examples_go_through_the_model_into_text(world, tmp_path, monkeypatch):
    name = "tiny_mood"
    monkeypatch.setattr(reading, "decode", lambda vocabulary, tokens: HOSTILE)
    write_report([world.target], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<script" not in html and HOSTILE in check(html).text and name in html


def test_a_split_that_the_task_does_not_have_is_wrong_use(world, tmp_path):
    with pytest.raises(UsageError, match="has no split 'tset', expected one of .*'test'"):
        write_report([world.target], tmp_path / "page.html", split="tset")
    assert not (tmp_path / "page.html").exists()


def test_a_stopped_run_and_missing_values_are_shown_as_such(tmp_path):
    fake_run(tmp_path / "runs" / "whole", test=60.0)
    fake_run(tmp_path / "runs" / "stopped", finished=False)
    write_report([tmp_path / "runs"], tmp_path / "page.html")
    page = check((tmp_path / "page.html").read_text())
    assert "1 of 2 finished" in page.text
    assert page.row("stopped", "validation")[2:6] == ["–", "–", "–", "not finished"]
    assert page.row("whole", "test")[3:5] == ["60", "–"]
    assert page.row("stopped", "pemt_target", "shop")[5].startswith("not finished Stopped, failed")


@pytest.mark.slow
def test_a_thousand_runs_take_seconds_and_megabytes(tmp_path):
    copies(fake_run(tmp_path / "run", test=60.0), tmp_path / "runs", 1000)
    render(find_runs([str(tmp_path / "run")]))  # imports
    start = time.process_time()
    write_report([tmp_path / "runs"], tmp_path / "page.html")
    assert time.process_time() - start < 5
    assert (tmp_path / "page.html").stat().st_size < 5e6
    page = check((tmp_path / "page.html").read_text())
    assert "1000 of 1000 finished, 200 kinds of run" in page.text
    assert "the 12 with the best validation score of 200" in page.text


def test_wrong_use_is_one_sentence_and_writes_nothing(tmp_path, capsys):
    fake_run(tmp_path / "run")
    for arguments in (["run", "--to", "x.txt"], ["nowhere", "--to", "x.html"]):
        arguments[0] = str(tmp_path / arguments[0])
        assert report.main(arguments) == 2
        output, error = capsys.readouterr()
        assert output == "" and error.startswith("error: ") and error.count("\n") == 1
    assert not Path("x.html").exists()


def test_a_page_without_gates_needs_no_tensorflow(tmp_path):
    fake_run(tmp_path / "run")
    page = str(tmp_path / "page.html")
    program = (
        "import sys; from pemt_jax import report; "
        f"code = report.main([{str(tmp_path)!r}, '--no-gates', '--to', {page!r}]); "
        "print(code, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
