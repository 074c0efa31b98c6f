"""The report of a sweep: its numbers by hand, its marks, its forms, and sweeps with holes."""

import math
import re
import statistics
import time

import numpy as np
import pytest
from bucket import bucket_folder_fixture, storage_fixture  # noqa: F401
from fake_results import row, study, write
from test_report import check

from pemt_jax import report
from pemt_jax.sweeping.methods import METHODS
from pemt_jax.sweeping.pages import numbers, pictures
from pemt_jax.sweeping.pages.page import render, write_sweep_report
from pemt_jax.sweeping.pages.published import published
from pemt_jax.sweeping.pages.results import read_sweep

HOSTILE = "<script>alert('1')</script>|_&"


def entries(rows, baseline="adapter", other=None):
    return numbers.entries(rows, baseline, other or {})


def test_the_error_adds_sets_seeds_and_examples():
    values = {"seed0": [70.0, 74.0], "seed1": [60.0, 62.0], "seed2": [66.0, 71.0]}
    rows = [
        row(set=name, seed=seed, test=value)
        for name, own in values.items()
        for seed, value in enumerate(own)
    ]
    (entry,) = entries(rows).values()
    grid = np.array(list(values.values()))
    within, between = np.sqrt(grid.var(axis=1, ddof=1).mean()), grid.mean(axis=1).std(ddof=1)
    p = grid.mean() / 100
    error = math.sqrt(between**2 / 3 + within**2 / 2 + 1e4 * p * (1 - p) / 200)
    found = [entry.mean, entry.within, entry.between, entry.error]
    np.testing.assert_allclose(found, [grid.mean(), within, between, error], rtol=1e-12)
    assert (entry.seeds, entry.examples, entry.majority, entry.scale) == (2, 200, 50.0, 100)


def test_without_a_second_set_or_seed_there_is_no_spread():
    (entry,) = entries([row(test=70.0)]).values()
    assert (entry.within, entry.between) == (None, None)
    assert entry.error == pytest.approx(100 * math.sqrt(0.7 * 0.3 / 200))
    (entry,) = entries([row(test=70.0) | {"facts": {}}]).values()
    assert entry.error is None


def test_marks_say_best_noise_and_majority():
    rows = [row("pemt", test=90.0), row("adapter", test=89.0), row("lora", test=50.0)]
    rows += [row("pooled", test=51.0), row("full", test=30.0)]
    found = {entry.method: entry.marks for entry in entries(rows).values()}
    assert found == {
        "pemt": ["best"],
        "adapter": ["within the noise of the best"],
        "lora": ["equals the majority class"],
        "pooled": ["within the noise of the majority class"],
        "full": ["below the majority class"],
    }


def test_the_difference_from_the_baseline_is_seed_by_seed():
    rows = [row("adapter", set="", seed=seed, test=60.0 + 10 * seed) for seed in (0, 1)]
    rows += [
        row("pemt", set=f"seed{s}", seed=seed, test=62.0 + 10 * seed + s)
        for s in (0, 1)
        for seed in (0, 1)
    ]
    rows.append(row("single", shots="any", test=65.0))
    found = {entry.method: entry.difference for entry in entries(rows).values()}
    assert found["pemt"] == pytest.approx((2.5, statistics.stdev([2, 3, 2, 3])))
    assert found["single"] == pytest.approx((0.0, statistics.stdev([5, -5])))
    assert found["adapter"] == (None, None)


def test_the_transfer_matrix_is_validation_at_the_best_rate():
    rows = [
        row("one_expert", task=task, seed=seed, candidate={"expert": source, "rate": rate},
            validation={"average": value + seed})  # fmt: skip
        for source, task, rate, value in [
            ("a", "t", 1, 50.0), ("a", "t", 2, 60.0), ("b", "t", 1, 80.0), ("a", "u", 1, 10.0)
        ]
        for seed in (0, 2)
    ]  # fmt: skip
    (table,) = numbers.transfers(rows)
    assert table.scores == {"a": {"t": 61.0, "u": 11.0}, "b": {"t": 81.0}}
    assert table.apart("b", "t") == pytest.approx(10.0) and table.apart("b", "u") is None


def test_costs_are_per_run_and_packed_jobs_are_shared(tmp_path):
    rows = [row(seed=seed) for seed in (0, 1)] + [row(seed=2, state="failed")]
    lines = [
        {"run": rows[0]["run"], "seconds": 90.0, "runs": 3, "peak_memory": 5, "stored": 10},
        {"run": rows[1]["run"], "seconds": 50.0, "runs": 1, "peak_memory": 7, "stored": 20},
    ]
    (cost,) = numbers.costs(rows, lines)
    assert (cost["runs"], cost["seconds"], cost["memory"], cost["stored"]) == (2, 40.0, 7, 15)


def test_forgetting_is_a_cost_where_it_was_measured(tmp_path):
    rows = [
        row("pemt", seed=0, test=70.0, general_loss=3.5, forgetting=0.25),
        row("pemt", seed=1, test=70.0, general_loss=3.75, forgetting=0.5),
        row("pemt", seed=1, chosen=False, general_loss=None, forgetting=None),
        row("lora", test=60.0),  # of a version that did not measure it
    ]
    page = check(render(read_sweep(str(write(tmp_path / "sweep", rows)))))
    head = next(cells for cells in page.rows if "peak memory" in cells)
    costs = [
        cells for cells in page.rows if cells[0] in ("pemt", "lora") and len(cells) == len(head)
    ]
    assert [cells[head.index("forgetting")] for cells in costs] == ["+0.375", "–"]
    assert "minus that of the base (3.25)" in page.text
    without = check(render(read_sweep(str(write(tmp_path / "other", rows[3:])))))
    assert not any("forgetting" in cells for cells in without.rows)
    assert "Forgetting was not measured" in without.text


def test_a_curve_is_the_mean_of_the_chosen_runs_between_the_lowest_and_highest():
    rows = [
        row("pemt", set=name, seed=seed, curve=[[10, 50.0 + 4 * seed], [20, 60.0 + own], [30, 1.0]])
        for own, name in enumerate(("seed0", "seed1"))
        for seed in (0, 1)
    ]
    rows[0]["curve"].pop()  # it ended earlier
    rows += [row("pemt", chosen=False, curve=[[10, 0.0], [20, 0.0]])]
    rows += [row("single", shots="any"), row("lora", curve=[[10, 40.0]])]
    rows += [row("adapter", task="rooms", curve=[]) | {"curve": []}]
    (figure,) = pictures.curve_figures(rows, numbers.columns(rows))
    assert [line.name for line in figure.lines] == ["pemt", "lora"]
    assert figure.lines[0].numbers == [(10, 52.0, 50.0, 54.0), (20, 60.5, 60.0, 61.0)]
    assert "<svg" in figure.svg and figure.title == "Validation metric of shop, 8 shots"


def test_so_many_columns_and_methods_have_curves_and_the_page_says_so(tmp_path):
    rows = [row(method, task=f"task_{i}", test=70.0) for method in list(METHODS) for i in range(10)]
    html = render(read_sweep(str(write(tmp_path / "sweep", rows))))
    page = check(html)
    assert html.count("<svg") == pictures.FIGURES and "Of the 10 columns the first 8" in page.text
    trained = sum(method.trained for method in METHODS.values())
    assert f"the first 12 are shown, {trained - 12} are left out" in page.text


def test_gates_per_layer_are_means_over_the_chosen_runs(tmp_path):
    layers = ("encoder/layers_10/mlp", "encoder/layers_2/mlp", "decoder/layers_0/self_attention")
    rows = [
        row("pemt", seed=seed, test=70.0, experts=[["songs", "s"], ["books", "b"]],
            gates={layer: {"books": 0.25 + seed / 2, "songs": 0.75 - seed / 2} for layer in layers})
        for seed in (0, 1)
    ]  # fmt: skip
    rows += [row("random", test=70.0, gates={layers[0]: {"random_books": 1.0}})]
    rows += [row("pemt", chosen=False, gates={layer: {"books": 1.0} for layer in layers})]
    (part,) = pictures.layer_heats(rows, numbers.columns(rows))
    assert part["runs"] == 2 and part["column"] == ("shop", "8")
    encoder, decoder = part["heats"]
    assert encoder.columns == ["songs", "books"]
    assert [name for name, _ in encoder.rows] == ["2 feed-forward", "10 feed-forward", "mean"]
    assert {tuple(values) for _, values in (*encoder.rows, *decoder.rows)} == {(0.5, 0.5)}
    page = check(render(read_sweep(str(write(tmp_path / "sweep", rows)))))
    assert page.row("0 self attention")[1:] == ["0.50", "0.50"]
    assert "shop, 8 shots: 2 runs" in page.text


@pytest.mark.parametrize("sources", [1, 24])
def test_any_number_of_sources_is_one_page(tmp_path, capsys, sources):
    place = write(tmp_path / "sweep", study(sources))
    targets = [tmp_path / name for name in ("page.html", "table.md", "table.tex")]
    flags = zip(("--to", "--markdown", "--latex"), map(str, targets), strict=True)
    assert report.main([str(place), *(word for pair in flags for word in pair)]) == 0
    assert "runs" in capsys.readouterr().out
    page = check(targets[0].read_text())
    assert page.row("pemt", "task_0, 8 shots")[5].startswith("1 of 30 runs failed")
    assert page.row("lora", "task_1, 8 shots")[5] == "equals the majority class"
    assert len([cells for cells in page.rows if cells[0].strip().startswith("source_")]) == sources
    assert page.row("pemt, task_1, 8")[1:] == [f"{1 / sources:.2f}"] * sources
    assert "waiting" in page.text and "The loss of step 3 is not finite" in page.text


def test_markdown_and_latex_have_the_same_cells(tmp_path):
    place = write(tmp_path / "sweep", study())
    write_sweep_report(place, markdown=tmp_path / "t.md", latex=tmp_path / "t.tex")
    markdown, latex = (tmp_path / "t.md").read_text(), (tmp_path / "t.tex").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in lines} == {6} and len(lines) == 2 + 5
    body = latex.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert {line.count("&") for line in body} == {6} and len(body) == 5
    assert latex.count(r"\textbf") == markdown.count("**") / 2 - 1 == 6  # the title is bold too
    assert latex.count(r"$^\ddagger$") == 3 and "Failed: 1 of 516 runs." in markdown
    assert "in brackets the standard deviation" in markdown
    assert r"task\_0" in latex and not re.search(r"(?<!\\)_", latex.partition(r"\bottomrule")[0])


def test_published_numbers_stand_beside_ours_with_their_source(tmp_path):
    rows = [row("pemt", "pemt_cb", "full", test=90.0), row("adapter", "pemt_cb", "full", test=80.0)]
    place = write(tmp_path / "sweep", rows, published="t5_base_glue_superglue")
    write_sweep_report(place, tmp_path / "page.html", markdown=tmp_path / "t.md")
    page = check((tmp_path / "page.html").read_text())
    assert page.row("adapter", "pemt_cb")[-2] == "85.7" and page.row("pemt")[-2] == "92.9"
    assert page.row("MPT (published)")[1] == "79.8" and "ULPT paper, Table 1" in page.text
    markdown = (tmp_path / "t.md").read_text()
    assert "| Adapter (published) | 85.7 |" in markdown and "brackets" not in markdown


def test_published_names_are_those_of_the_methods():
    names = {method.published for method in METHODS.values()} - {""}
    tables = [published(name) for name in ("t5_base_glue_superglue", "t5_base_mrqa_others")]
    assert names <= {name for table in tables for name in table.rows}
    assert tables[0].rows["Fine-tuning"]["pemt_cola"] == 61.8


def test_a_sweep_without_a_test_yet_is_a_page(tmp_path):
    rows = [row(test=None, chosen=None, state="waiting", validation={}) for _ in (0,)]
    write_sweep_report(write(tmp_path / "sweep", rows), tmp_path / "page.html")
    page = check((tmp_path / "page.html").read_text())
    assert page.row("pemt", "shop, 8 shots")[3] == "–"
    assert "Not trained or not tested yet: 1 of 1" in page.text


def test_hostile_text_is_shown_and_nothing_else(tmp_path):
    rows = [row(HOSTILE, HOSTILE, HOSTILE, HOSTILE, test=70.0, candidate={"expert": HOSTILE})]
    rows.append(row(HOSTILE, HOSTILE, HOSTILE, HOSTILE, state="failed", reason=HOSTILE))
    place = write(tmp_path / "sweep", rows, title=HOSTILE)
    write_sweep_report(place, tmp_path / "page.html", markdown=tmp_path / "t.md")
    html = (tmp_path / "page.html").read_text()
    assert "<script" not in html and check(html).text.count(HOSTILE) >= 5
    assert not re.search(r"(?<!\\)<", (tmp_path / "t.md").read_text())


@pytest.mark.slow
def test_two_thousand_runs_take_seconds_and_megabytes(tmp_path):
    rows = study(sources=24, tasks=8, layers=24, points=30)
    place = write(tmp_path / "sweep", rows)
    write_sweep_report(place, tmp_path / "page.html")  # imports
    start = time.process_time()
    assert len(write_sweep_report(place, tmp_path / "page.html").rows) > 1000
    assert time.process_time() - start < 5
    assert (tmp_path / "page.html").stat().st_size < 5e6


def test_wrong_use_is_one_sentence(tmp_path, capsys):
    place = write(tmp_path / "sweep", [row(test=70.0)], published="t5_bse_glue")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.jsonl").write_text("{}\nno\n")
    write(tmp_path / "old", [{"run": "x", "state": "failed"}])
    for arguments, code, sentence in (
        ([place, "--to", tmp_path / "x.html"], 2, "There is no published table 't5_bse_glue'"),
        ([place, "--to", tmp_path / "x.txt"], 2, "is no name of a page"),
        ([tmp_path / "bad", "--to", tmp_path / "x.html"], 1, "results.jsonl line 2 is no JSON"),
        ([tmp_path / "old", "--to", tmp_path / "x.html"], 1, "line 1 has no 'base', expected"),
        ([tmp_path, "--markdown", tmp_path / "x.md"], 2, "Of runs only a page is written"),
    ):
        assert report.main(list(map(str, arguments))) == code
        output, error = capsys.readouterr()
        assert output == "" and sentence in error and error.count("\n") == 1
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.slow
def test_a_copy_in_a_bucket_has_the_same_page(tmp_path, bucket_folder):
    place = write(tmp_path / "sweep", study())
    for name in ("results.jsonl", "costs.jsonl", "sweep.json"):
        (bucket_folder / name).write_text((place / name).read_text())
    for source, name in ((place, "disk"), (bucket_folder, "bucket")):
        assert report.main([str(source), "--to", str(tmp_path / f"{name}.html")]) == 0
    assert (tmp_path / "disk.html").read_text() == (tmp_path / "bucket.html").read_text()
