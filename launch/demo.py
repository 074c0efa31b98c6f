"""The demo: experts on four source tasks, then few examples of a fifth, on a laptop.

Run it as ./launch/demo.sh; with --study it becomes study.py.
"""

import argparse
import json
from pathlib import Path

import bag_of_words
from experiment import SOURCES, TARGET, Experiment, Stopwatch, accuracy, gates

from pemt_jax.common.storage import replacing
from pemt_jax.parallel import processes
from pemt_jax.reporting.page import write_report

SHOTS, SEED = 32, 0
# Each way has the rate that study.py chose for it on validation.
RATES = {"pemt": 3e-3, "adapter": 3e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/demo", help="where everything is written")
    folder = parser.parse_args().folder
    watch, demo = Stopwatch(), Experiment(folder)
    print(f"Stage 1: one expert for each of {', '.join(SOURCES)}.")
    for task in SOURCES:
        demo.source(task)
    print(f"\nStage 2: {SHOTS} examples a label of {TARGET}, with and without the experts.")
    found = {}
    for method, rate in RATES.items():
        found[method] = demo.test(demo.few_shot(method, SHOTS, SEED, rate))
    best = demo.best_single_expert()
    found["best"] = demo.test(best)
    if not processes.is_first():
        return
    words = bag_of_words.scores(SHOTS, SEED)
    summary = {
        "pemt": {"test_accuracy": accuracy(found["pemt"])},
        "adapter": {"test_accuracy": accuracy(found["adapter"])},
        "best_single_expert": {"name": best, "test_accuracy": accuracy(found["best"])},
        "bag_of_words": words,
        "gates": gates(found["pemt"]),
        "shots": SHOTS,
        "seconds": watch.seconds,
    }
    path = Path(folder) / "summary.json"
    if path.is_file() and not demo.trained:
        summary["seconds"] = json.loads(path.read_text(encoding="utf-8"))["seconds"]  # of training
    with replacing(path) as partial:
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report(summary, path)
    write_page(path.parent)


def report(summary: dict, path: Path) -> None:
    """Print what the demo found."""
    words, best = summary["bag_of_words"], summary["best_single_expert"]
    rows = [
        ("PEMT (experts, gate, adapter)", summary["pemt"]["test_accuracy"]),
        ("the same adapter without experts", summary["adapter"]["test_accuracy"]),
        (f"{best['name']} alone, no target examples", best["test_accuracy"]),
        ("bag of words, the few examples", words["few"]),
        ("bag of words, all sources and the few", words["sources_and_few"]),
    ]
    print(f"\nTest accuracy on {TARGET}, {summary['shots']} examples a label, one draw of them:")
    for name, share in rows:
        print(f"  {name:40s} {share:.3f}  {'#' * round(50 * share)}")
    print("\nMean gate weight of each expert:")
    for name, weight in summary["gates"].items():
        print(f"  {name:40s} {weight:.3f}  {'#' * round(50 * weight)}")
    seconds, folder = summary["seconds"], path.parent
    print(f"\n{seconds:.0f} seconds. Runs, experts and {path.name} are in {folder}.")
    print(
        f"Try: echo 'sentence: It broke on the first day.' | python -m pemt_jax.predict "
        f"--gin.MODEL_DIR={folder}/pemt_{SHOTS}_seed{SEED}_rate{RATES['pemt']:g}"
    )


def write_page(folder: Path) -> None:
    """Write the report of all runs, with gates and prompts, and print where it is."""
    page = folder / "report.html"
    write_report([folder], page, gates=True)
    print(f"Scores, curves, gates and prompts as a page: {page}")


if __name__ == "__main__":
    main()
