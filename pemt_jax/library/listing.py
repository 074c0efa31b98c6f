"""What `python -m pemt_jax.library` prints about experts."""

from collections.abc import Sequence
from pathlib import Path

from pemt_jax.common.errors import PemtError
from pemt_jax.common.user_input.linears import linear_kind
from pemt_jax.library.artefact import Card, brief, is_finite, read_card
from pemt_jax.library.expert import expert_folder, load_expert


def table(library: Path, names: Sequence[str]) -> tuple[str, list[PemtError]]:
    """One line per expert, from its card ("" for none), and what is wrong with the others."""
    rows, faults = [("EXPERT", "TASK", "RANK", "BASE", "METRICS", "MB")], []
    for name in names:
        try:
            card = read_card(folder := expert_folder(library, name))
        except PemtError as error:
            faults.append(error)
            continue
        metrics = ", ".join(f"{key} {value}" for key, value in brief(card.metrics).items())
        metrics += at_chance(card)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        rows.append(
            (
                name,
                plain(card.task),
                str(card.rank),
                plain(card.base_name or card.base_fingerprint[:12]),
                plain(metrics or "-"),
                f"{size:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if heading in ("RANK", "MB") else cell.ljust(width)
            for cell, width, heading in zip(row, widths, rows[0], strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines) if len(rows) > 1 else "", faults


def at_chance(card: Card) -> str:
    """ " (at chance: ...)" for what is no better than the majority class, else ""."""
    match card.config.get("majority_class"):
        case {"beaten": False, "average": average} if is_finite(average):
            return f" (at chance: the majority class has {average:.4g})"
    return ""


def facts(library: Path, name: str) -> str:
    """Everything known about an expert, one fact per line, after verifying it."""
    expert, card = load_expert(library, name), read_card(expert_folder(library, name))
    kinds = sorted({linear_kind(linear) for linear in expert.lora})
    known = {
        "expert": name,
        "folder": library / name,
        "task": card.task,
        "method": card.method,
        "prompt": card.description,
        "shape": f"rank {card.rank}, model width {expert.features}, {len(expert.lora)} linear "
        f"layers, {len(expert.prompt)} prompt rows",
        "on": ", ".join(kinds),
        "base": f"{card.base_name} {card.base_fingerprint}".strip(),
        **card.metrics,
        "sha256": card.sha256,
        "versions": ", ".join(f"{key} {value}" for key, value in card.versions.items()),
        **{f"config {key}": value for key, value in card.config.items()},
    }
    width = max(map(len, known))
    return "\n".join(f"{plain(key.ljust(width))}  {plain(value)}" for key, value in known.items())


def plain(value: object) -> str:
    """Text for a terminal: a card from elsewhere must not send it control sequences."""
    return str(value) if str(value).isprintable() else ascii(str(value))
