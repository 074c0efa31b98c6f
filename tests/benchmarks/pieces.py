"""Time of each piece of a stage-2 step, from a trace of the real step, as a table and a figure.

    python tests/benchmarks/pieces.py --json --size small

XLA records the source of every instruction; the time of a fused instruction counts for the piece of
its last operation. pieces.svg shows the step as an icicle chart: forward and backward, encoder and
decoder, piece.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import jax
import systems
import timing

# The first match counts; from the inside of a layer outwards.
PIECES = (
    ("attention", r"attention/|relpos_bias|attention_layer_norm"),
    ("gate and loss", r"/gate/|mlp/(bl[ed]|erd|bler|ble|be|reduce|dot)\W|cross_entropy"),
    ("experts", r"/experts?/|lora_"),
    ("adapter", r"/adapter/"),
    ("feed-forward", r"/mlp/|mlp_layer_norm"),
    ("logits", r"attend|logits_dense|log_softmax|take_along|logsumexp"),
    ("embedding and prompt", r"token_embedder|prompt|embedding"),
)
PICTURE = Path(__file__).with_name("pieces.svg")


def piece_of(source: str) -> tuple[str, str, str]:
    """Return (phase, stack, piece) of an instruction's source."""
    inside = "Transformer" in source or "jvp" in source
    phase = "backward" if "transpose(" in source else "forward" if inside else "update"
    stack = next((s for s in ("encoder", "decoder") if f"/{s}/" in source), "around")
    piece = next((name for name, pattern in PIECES if re.search(pattern, source)), None)
    if piece is None:
        piece = "optimizer" if phase == "update" else "residual, dropout, other"
    return phase, stack, piece


def sources(compiled: jax.stages.Compiled) -> dict[str, str]:
    """Return {instruction: its source in the model}."""
    found = {}
    for line in compiled.as_text().splitlines():
        if match := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", line):
            found[match[1]] = match[2]
    return found


def traced_seconds(step: systems.Step) -> collections.Counter:
    """Return the seconds of one call by (phase, stack, piece)."""
    known, seconds = sources(step.compiled), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        (path,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(path))
        for plane in trace.planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in known and not event.name.startswith(("while", "call")):
                        seconds[piece_of(known[event.name])] += event.duration_ns / 1e9
    return seconds


def draw(seconds: collections.Counter, title: str, path: Path = PICTURE) -> None:
    """Draw an icicle chart: each level of bars divides the bars of the level below."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pieces"
    from matplotlib import pyplot

    names = [name for name, _ in PIECES] + ["residual, dropout, other", "optimizer"]
    colours = dict(zip(names, pyplot.get_cmap("tab10").colors, strict=False))
    phases, stacks = ("forward", "backward", "update"), ("encoder", "decoder", "around")
    order = (*phases, *stacks, *names)
    keys = sorted(seconds, key=lambda key: [order.index(part) for part in key])
    total, figure = sum(seconds.values()), pyplot.figure(figsize=(11, 3.9))
    axes = figure.subplots()
    for depth in range(3):
        left = 0.0
        for prefix in dict.fromkeys(key[: depth + 1] for key in keys):
            width = sum(seconds[key] for key in keys if key[: depth + 1] == prefix) / total
            colour = colours[prefix[-1]] if depth == 2 else ("0.75", "0.87")[depth]
            axes.barh(depth, width, left=left, height=0.94, color=colour, edgecolor="white")
            if width > 0.02:
                label = f"{prefix[-1].partition(',')[0]}\n{100 * width:.0f} %"
                axes.text(
                    left + width / 2,
                    depth,
                    label,
                    ha="center",
                    va="center",
                    fontsize=7,
                    rotation=90 if width < 0.06 else 0,
                    clip_on=True,
                )
            left += width
    axes.set(xlim=(0, 1), yticks=[], title=title, xlabel="share of the step")
    shown = [name for name in names if any(key[2] == name for key in keys)]
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[name]) for name in shown]
    figure.legend(handles, shown, loc="lower center", ncols=5, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def measure(size: str = "base", batch: int = 8, source: int = 256) -> dict:
    step = systems.Step("pemt_target", systems.SIZES[size], systems.random_batch(batch, source))
    step()
    traces = [traced_seconds(step) for _ in range(3)]
    seconds = min(traces, key=lambda trace: sum(trace.values()))
    draw(seconds, f"Stage-2 step, T5-{size}, {batch} x {source}, six experts")
    table = collections.Counter()
    for (_, _, piece), value in seconds.items():
        table[piece] += value
    total = sum(table.values())
    return {
        "pieces_of_step": timing.row(
            None,
            None,
            seconds=dict(table.most_common()),
            shares={name: value / total for name, value in table.most_common()},
        )
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default="base", choices=sorted(systems.SIZES))
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--source", type=int, default=256)
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.size, chosen.batch, chosen.source), options)
