"""Expert sets of a sweep, and the libraries that are made of them.

A set trained by the sweep is FOLDER/libraries/SET. What a method needs that is made of a set is
FOLDER/libraries/SET.KIND: random experts, one more that adds nothing, a merge, the low-rank pair of
the pooled sources. The library that it is made of is left as it is.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.writing import lease
from pemt_jax.library.artefact import Card, read_card
from pemt_jax.library.combination import Combination
from pemt_jax.library.combine import combine_experts, random_expert
from pemt_jax.library.expert import expert_folder, expert_names
from pemt_jax.library.transfer import add_expert, remove_expert
from pemt_jax.sweeping.methods import SEARCHED
from pemt_jax.sweeping.table import SweepConfig

POOLED, MERGED, NULL = "pooled", "merged", "null"  # names of experts


@dataclasses.dataclass(frozen=True)
class ExpertSet:
    """Experts that are used together.

    Attributes:
      seed: with which the sweep trains them, and makes what is random of them.
      trained: whether the sweep trains them.
      without: experts of the set that are left out, which then are not in `experts`.
    """

    name: str
    library: str
    experts: tuple[str, ...]
    seed: int = 0
    trained: bool = False
    without: tuple[str, ...] = ()


def expert_sets(config: SweepConfig) -> list[ExpertSet]:
    """The expert sets of a sweep, those that exist first."""
    stage1 = config.experts
    sets = [
        ExpertSet(name, str(library), tuple(experts))
        for name, (library, experts) in stage1.libraries.items()
    ]
    for seed in stage1.source_seeds if stage1.sources else ():
        name = f"seed{seed}"
        library = str(config.path / "libraries" / name)
        sets.append(ExpertSet(name, library, tuple(stage1.sources), seed, trained=True))
    names = [one.name for one in sets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"There are two expert sets {twice!r}, expected another name for one.")
    return sets


def experts_for(config: SweepConfig, chosen: ExpertSet, task: str) -> ExpertSet:
    """A set without the experts that a target task leaves out.

    Raises:
      UsageError: nothing is left.
    """
    left_out = config.experts.leave_out.get(task, ())
    without = tuple(name for name in chosen.experts if name in left_out)
    rest = tuple(name for name in chosen.experts if name not in left_out)
    if not rest:
        raise UsageError(f"LEAVE_OUT leaves no expert of {chosen.name!r} for {task!r}.")
    return dataclasses.replace(chosen, experts=rest, without=without)


def _random(library: Path, experts: Sequence[str], seed: int) -> None:
    for i, name in enumerate(experts):
        random_expert(library, f"random_{name}", name, seed * len(experts) + i)


def _null(library: Path, experts: Sequence[str], seed: int) -> None:
    """One more expert, whose matrices are zero: a gate can turn to it from all others."""
    del seed  # nothing of it is random
    combine_experts(library, NULL, experts[:1], Combination("linear", (0.0,)))


def _merge(method: str, density: float | None = None, sum_to_one: bool = True) -> Callable:
    """How a set is merged into one expert: the weights are 1/E each, or 1."""

    def make(library: Path, experts: Sequence[str], seed: int) -> None:
        weights = (1 / len(experts) if sum_to_one else 1.0,) * len(experts)
        combination = Combination(method, weights, density, seed=seed)
        combine_experts(library, MERGED, experts, combination, experts[0])

    return make


# kind -> how it is made in a copy of a library
DERIVED: dict[str, Callable[[Path, Sequence[str], int], None]] = {
    "random": _random,
    "null": _null,
    "linear": _merge("linear"),
    "svd": _merge("svd"),
    "ties": _merge("ties_svd", density=0.2, sum_to_one=False),
    "dare": _merge("dare_linear_svd", density=0.5),
}


def experts_of(config: SweepConfig, chosen: ExpertSet, kind: str, task: str = "") -> ExpertSet:
    """The set itself, or what a method's `library` says is made of it; it need not exist yet.

    Args:
      task: a draw of the target, after which what was found on its examples is named.
    """
    if kind == "own":
        return chosen
    names = {POOLED: (POOLED,), SEARCHED: (f"{SEARCHED}_{task}",)}.get(kind, (MERGED,))
    if kind == "random":
        names = tuple(f"random_{name}" for name in chosen.experts)
    elif kind == "null":
        names = (*chosen.experts, NULL)
    base = "-without-".join((chosen.name, *chosen.without))
    library = config.path / "libraries" / f"{base}.{kind}"
    return dataclasses.replace(chosen, library=str(library), experts=names, trained=False)


def missing(chosen: ExpertSet) -> list[str]:
    """Names of experts of a set that its library has not, or not yet."""
    if not chosen.experts:
        return []
    library = storage.path(chosen.library)
    have = expert_names(library) if library.is_dir() else []
    return [name for name in chosen.experts if name not in have]


def check_exists(sets: Sequence[ExpertSet]) -> None:
    """Raise UsageError for a set that nobody makes and that is not there."""
    for one in sets:
        if not one.trained and (absent := missing(one)):
            raise UsageError(
                f"The library {one.library} has no expert {absent[0]!r} for the set {one.name!r}, "
                f"expected {', '.join(one.experts)}."
            )


def derive(config: SweepConfig, chosen: ExpertSet, kind: str) -> None:
    """Make the library of a kind of a set whose experts exist; nothing where it is there."""
    made = experts_of(config, chosen, kind)
    library = storage.path(made.library)
    with _alone_in(library):
        if not missing(made):
            return
        for name in expert_names(library) if library.is_dir() else ():
            remove_expert(library, name)  # what a killed sweep has left
        _add(chosen, library)
        DERIVED[kind](library, chosen.experts, chosen.seed)


def copy(chosen: ExpertSet, library: str) -> None:
    """Put the experts of a set into another library, those that it has not yet."""
    to = storage.path(library)
    with _alone_in(to):
        _add(chosen, to)


def _alone_in(library: Path) -> contextlib.AbstractContextManager:
    """Context in which no other process of a sweep makes a library."""
    return lease.held(library.with_name(f"{library.name}.lock"), f"The library {library}", wait=600)


def _add(chosen: ExpertSet, library: Path) -> None:
    for name in missing(dataclasses.replace(chosen, library=str(library))):
        add_expert(library, expert_folder(storage.path(chosen.library), name))


def card_of(library: str, name: str) -> Card:
    """The card of an expert, which has its prompt's text and its rank."""
    return read_card(expert_folder(storage.path(library), name))


def replaced(library: str, experts: Sequence[tuple[str, str]]) -> str | None:
    """The first of (name, sha256) that the library has no longer with that sha256, if any."""
    for name, sha256 in experts:
        with contextlib.suppress(PemtError):
            if read_card(expert_folder(storage.path(library), name)).sha256 == sha256:
                continue
        return name
    return None
