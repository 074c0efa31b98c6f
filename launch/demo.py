"""The demo: experts on four source tasks, then few examples of a fifth, on a laptop.

Run it as ./launch/demo.sh. One expert is trained, three ship with the package, made by

    ./launch/demo.sh --all --export pemt_jax/assets/demo_library
"""

import argparse
import json
import sys
from pathlib import Path

import bag_of_words
from experiment import (
    SOURCES,
    TARGET,
    Experiment,
    Stopwatch,
    accuracy,
    cpu_seconds,
    gates,
    matmul_gflops,
    program,
)

from pemt_jax.common.storage import replacing
from pemt_jax.parallel import processes
from pemt_jax.predict import predict
from pemt_jax.reporting.page import write_report

TRAINED = "vader_tweets"  # the expert that is trained unless all are
SHOTS, SEED = 32, 0
# Of 1e-3 and 3e-3 the better one on validation, here and in tables/study.gin.
RATES = {"pemt": 1e-3, "adapter": 3e-3}
SENTENCES = (
    "It broke on the first day.",
    "The picture is sharp and the sound is clear.",
    "The software is slow and full of problems.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="default: runs/demo; of --all runs/demo_all")
    parser.add_argument("--all", action="store_true", help="train all four experts")
    parser.add_argument("--export", type=Path, help="a library that gets the experts in bfloat16")
    arguments = parser.parse_args()
    folder = arguments.folder or Path("runs", "demo_all" if arguments.all else "demo")
    watch, demo = Stopwatch(), Experiment(folder)
    trained = SOURCES if arguments.all else (TRAINED,)
    print(f"Stage 1: an expert for each of {', '.join(SOURCES)}.", flush=True)
    for task in trained:
        with watch.phase(f"expert {task}"):
            demo.source(task)
    for task in SOURCES:
        if task not in trained:
            demo.packaged_source(task)
            print(f"expert {task!r} ships with the package; --all trains it anew")
    if arguments.export:
        demo.export(arguments.export)
    print(f"\nStage 2: {SHOTS} examples per label of {TARGET}, with and without the experts.")
    found, runs = {}, {}
    for method, rate in RATES.items():
        with watch.phase(f"{method} on {TARGET}"):
            runs[method] = demo.few_shot(method, SHOTS, SEED, rate)
            found[method] = demo.test(runs[method])
    with watch.phase("best single expert"):
        best = demo.best_single_expert()
        found["best"] = demo.test(best)
    sentences = folder / "sentences.txt"
    if processes.is_first():
        sentences.write_text("".join(f"sentence: {text}\n" for text in SENTENCES), encoding="utf-8")
    processes.barrier()
    answers = sentences.with_suffix(".jsonl")
    with watch.phase("predictions"):
        demo.command(
            predict,
            MODEL_DIR=folder / runs["pemt"],
            INPUT_FILE=sentences,
            OUTPUT_FILE=answers,
            BATCH_SIZE=len(SENTENCES),
        )
    if not processes.is_first():
        return
    with watch.phase("bags of words"):
        words = bag_of_words.scores(SHOTS, SEED)
    with watch.phase("report page"):
        page = write_page(folder)
    path = folder / "summary.json"
    cost = {
        "seconds": watch.seconds,
        "phases": watch.phases,
        "cpu_seconds": cpu_seconds(),
        "matmul_gflops": matmul_gflops(),
    }
    # A summary that is written again keeps what the training took.
    if path.is_file() and not demo.trained:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        cost = {name: earlier.get(name, value) for name, value in cost.items()}
    summary = {
        "pemt": {"test_accuracy": accuracy(found["pemt"])},
        "adapter": {"test_accuracy": accuracy(found["adapter"])},
        "best_single_expert": {"name": best, "test_accuracy": accuracy(found["best"])},
        "bag_of_words": words,
        "gates": gates(found["pemt"]),
        "shots": SHOTS,
        **cost,
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report(summary, answers)
    print(f"Scores, curves, gates and prompts as a page: {page}")


def report(summary: dict, answers: Path) -> None:
    """Print what the demo found."""
    words, best = summary["bag_of_words"], summary["best_single_expert"]
    rows = [
        ("PEMT (experts, gate, adapter)", summary["pemt"]["test_accuracy"]),
        ("the same adapter without experts", summary["adapter"]["test_accuracy"]),
        (f"{best['name']} alone, no target examples", best["test_accuracy"]),
        ("bag of words, the few examples", words["few"]),
        ("bag of words, all sources and the few", words["sources_and_few"]),
    ]
    print(f"\nTest accuracy on {TARGET}, {summary['shots']} examples per label, one draw of them:")
    for name, share in rows:
        print(f"  {name:40s} {share:.3f}  {'#' * round(50 * share)}")
    print("\nMean gate weight of each expert:")
    for name, weight in summary["gates"].items():
        print(f"  {name:40s} {weight:.3f}  {'#' * round(50 * weight)}")
    print("\nPredictions, with log probability and gates:")
    for line in answers.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        gate = ", ".join(f"{name} {weight:.2f}" for name, weight in answer["gate"].items())
        text = answer["input"].removeprefix("sentence: ")
        print(f"  {text:50s} {answer['prediction']} {answer['log_probability']:.2f}  ({gate})")
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["phases"].items())
    print(
        f"\n{summary['seconds']:.0f} seconds ({phases}) and {summary['cpu_seconds']:.0f} of CPU "
        f"time, where a 2048 x 2048 float32 product runs at {summary['matmul_gflops']:.0f} GFLOP/s."
        f"\nRuns, experts and summary.json are in {answers.parent}."
    )


def write_page(folder: Path) -> Path:
    """Write the report of all runs, with gates and prompts; return where it is."""
    page = folder / "report.html"
    write_report([folder], page, gates=True)
    return page


if __name__ == "__main__":
    sys.exit(program(main))
