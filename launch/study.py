"""The study behind launch/README.md's table: 8 and 32 examples per label, 5 draws, 5 ways.

Run it as ./launch/demo.sh --study.  Every trained way has the same number of steps, and its
learning rate is the one of the same grid with the best mean validation accuracy; the test split
is read for that one only.  Stopped and started again, it goes on where it was.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import bag_of_words
from experiment import POOLED, SOURCES, TARGET, Experiment, Stopwatch, accuracy, gates, program

from pemt_jax.common.storage import replacing

SHOTS, SEEDS, RATES = (8, 32), (0, 1, 2, 3, 4), (1e-3, 3e-3)
METHODS = {
    "pemt": "PEMT: gate over four experts, adapter",
    "adapter": "the same adapter without experts",
    "lora": "one LoRA, pooled sources, then the few",
    "averaged": "four experts, each at a quarter, no training",
    "single": "the best single expert (on validation), no training",
    "words_few": "bag of words, the few",
    "words_all": "bag of words, all sources and the few",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/study", help="where everything is written")
    folder = Path(parser.parse_args().folder)
    watch, study = Stopwatch(), Experiment(folder)
    for task in SOURCES:
        study.source(task)
    from pemt_jax import tasks  # after the first command, which keeps TensorFlow quiet

    # As many steps as the four experts had together.
    study.train(
        POOLED,
        "demo/stage1.gin",
        POOLED,
        METHOD="lora",
        TRAIN_STEPS=4240,
        EXPERT_NAME=POOLED,
        PROMPT_TEXT=tasks.description(TARGET),
    )
    results = {"rates": {}, "test": {}, "gates": {}}
    for shots in SHOTS:
        trained = {
            method: tuned(study, method, shots, results)
            for method in METHODS
            if method in ("pemt", "adapter", "lora")
        }
        trained["averaged"] = [
            study.few_shot("pemt", shots, seed, 0.0, TRAIN_STEPS=1) for seed in SEEDS[:1]
        ]
        trained["single"] = [study.best_single_expert()]
        scores = {}
        for method, names in trained.items():
            metrics = [study.test(name) for name in names]
            scores[method] = [accuracy(found) for found in metrics]
            if method == "pemt":
                results["gates"][shots] = [gates(found) for found in metrics]
        words = [bag_of_words.scores(shots, seed) for seed in SEEDS]
        scores["words_few"] = [found["few"] for found in words]
        scores["words_all"] = [found["sources_and_few"] for found in words]
        results["test"][shots] = scores
    results["seconds"] = watch.seconds
    with replacing(folder / "study.json") as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = table(results)
    with replacing(folder / "study.md") as partial:
        partial.write_text(text, encoding="utf-8")
    print("\n" + text)


def tuned(study: Experiment, method: str, shots: int, results: dict) -> list[str]:
    """Train at every rate and seed; names of the runs at the best rate, by mean validation."""
    names, validation = {}, {}
    for rate in RATES:
        names[rate] = [study.few_shot(method, shots, seed, rate) for seed in SEEDS]
        validation[rate] = statistics.mean(study.validation(name) for name in names[rate])
    best = max(RATES, key=validation.get)
    results["rates"].setdefault(method, {})[shots] = {
        "chosen": best,
        "validation": {f"{rate:g}": v for rate, v in validation.items()},
    }
    return names[best]


def spread(values: list[float]) -> str:
    """Mean and standard deviation of the sample."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def table(results: dict) -> str:
    """The results as a Markdown table."""
    head = " | ".join(f"{shots} a label" for shots in SHOTS)
    lines = [f"| test accuracy on {TARGET} | {head} |", "|---|" + "---|" * len(SHOTS)]
    for method, label in METHODS.items():
        cells = [spread(results["test"][shots][method]) for shots in SHOTS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    gains = []
    for shots in SHOTS:
        pairs = zip(*(results["test"][shots][m] for m in ("pemt", "adapter")), strict=True)
        gains.append(spread([pemt - adapter for pemt, adapter in pairs]))
    lines.append(f"| PEMT minus adapter, same draw | {' | '.join(gains)} |")
    for name in SOURCES:
        cells = [spread([gate[name] for gate in results["gates"][shots]]) for shots in SHOTS]
        lines.append(f"| mean gate of {name} | {' | '.join(cells)} |")
    rates = "; ".join(
        f"{method} " + ", ".join(f"{found[shots]['chosen']:g}" for shots in SHOTS)
        for method, found in results["rates"].items()
    )
    lines += [
        "",
        f"Mean ± standard deviation over {len(SEEDS)} draws of the examples. "
        f"Learning rates chosen on validation: {rates}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(program(main))
