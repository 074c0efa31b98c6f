"""Metrics as a person reads them; files keep every digit and every name."""

from collections.abc import Mapping


def brief(metrics: Mapping[str, float]) -> dict[str, str]:
    """{name: four significant digits} of metrics, each number once.

    Left out are the cross entropy where it is the loss, and the average where it is that of one
    metric.
    """
    shown = dict(metrics)
    if "loss" in shown and shown.get("cross_entropy") == shown["loss"]:
        del shown["cross_entropy"]
    others = {name: value for name, value in shown.items() if name != "average"}
    if shown.get("average") in others.values():
        shown = others
    return {name: f"{value:.4g}" for name, value in shown.items()}
