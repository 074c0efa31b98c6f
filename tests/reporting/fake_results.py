"""Folders as a sweep leaves them, without its runs."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path


def row(method="pemt", task="shop", shots="8", set="seed0", seed=0, test=None, **values) -> dict:
    """A line of results.jsonl; `test` is the accuracy in percent on 200 examples."""
    metrics = {} if test is None else {"accuracy": test, "average": test, "loss": 1.0}
    facts = {
        "examples": {task: 200},
        "majority": {"accuracy": 50.0, "average": 50.0},
        "share": {task: 0.5},
    }
    made = {
        "run": f"runs/{method}-{task}-{shots}-{set}-seed{seed}",
        "job": f"{method}-{task}-{shots}-{set}-seed{seed}",
        "method": method,
        "task": task,
        "shots": shots,
        "set": set,
        "seed": seed,
        "candidate": {"rate": 0.001},
        "chosen": True,
        "state": "finished",
        "reason": "",
        "trained_task": f"{task}_{shots}",
        "steps": 300,
        "validation": {"accuracy": 70.0, "average": 70.0, "loss": 1.0},
        "test": metrics,
        "facts": facts if metrics else {},
        "general_loss": None,
        "forgetting": None,
        "curve": [[150, 60.0 + seed], [300, 70.0 + seed]],
        "gates": {},
        "parameters": 12345,
        "base": "b" * 64,
        "experts": [],
    }
    return made | values


def write(folder: Path, rows: Sequence[dict], **table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    costs = [
        {"run": one["run"], "stored": 5000, "seconds": 60.0, "peak_memory": 2**30, "runs": 2}
        for one in rows
        if one["state"] == "finished"
    ]
    (folder / "costs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in costs))
    settings = {"title": "A study", "baseline": "adapter", **table}
    (folder / "sweep.json").write_text(json.dumps(settings))
    return folder


def study(sources=4, tasks=3, sets=3, seeds=5, rates=2, layers=3, points=4) -> list[dict]:
    """Rows of a study with a failed run, one that waits and one method at chance."""
    rng, found = random.Random(0), []
    names = [f"source_{i}" for i in range(sources)]
    means = {"pemt": 74, "adapter": 68, "lora": 66, "random": 67, "single": 62}
    for method, task in itertools.product(means, [f"task_{i}" for i in range(tasks)]):
        uses = method in ("pemt", "random", "single")
        for s in range(sets) if uses else [None]:
            own = f"seed{s}" if uses else ""
            if method == "single":
                best = rng.randrange(sources)
                for i, name in enumerate(names):
                    value = {"average": rng.gauss(60, 5)}
                    test = rng.gauss(62, 2) if i == best else None
                    found.append(
                        row(method, task, "any", own, 0, test, chosen=i == best, validation=value,
                            candidate={"expert": name}, run=f"{method}{task}{own}{name}")
                    )  # fmt: skip
                continue
            shift = rng.gauss(0, 1)
            for shots, seed, rate in itertools.product(("8", "32"), range(seeds), range(rates)):
                test = means[method] + shift + rng.gauss(0, 2) + (shots == "32") * 6
                test = 50.0 if (method, shots) == ("lora", "8") else test
                one = row(method, task, shots, own, seed, None if rate else test,
                          chosen=not rate, candidate={"rate": 0.001 * (1 + 2 * rate)})  # fmt: skip
                one["run"] += f"-rate{rate}"
                one["curve"] = [
                    [10 * (i + 1), means[method] - 20 / (i + 1) + rng.gauss(0, 1)]
                    for i in range(points)
                ]
                if method == "pemt" and not rate:
                    one["test"] |= {f"gate/{name}": 1 / sources for name in names}
                    one["gates"] = {
                        f"{stack}/layers_{i}/mlp": dict.fromkeys(names, 1 / sources)
                        for stack in ("encoder", "decoder")
                        for i in range(layers)
                    }
                found.append(one)
    for one, state in ((found[0], "failed"), (found[1], "waiting")):
        one |= {"state": state, "test": {}, "facts": {}, "validation": {}, "chosen": None}
        one["reason"] = "The loss of step 3 is not finite, expected a number."
    return found
