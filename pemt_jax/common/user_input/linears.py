"""The words by which a user names linear layers of a T5: `q`, `v:8`, `encoder/wo`, `all`."""

import dataclasses
import re

from pemt_jax.common.errors import UsageError, nearest

SHORT_NAMES = {"q": "query", "k": "key", "v": "value", "o": "out"}
LINEARS = {*SHORT_NAMES.values(), "wi", "wi_0", "wi_1", "wo"}


def linear_kind(path: str) -> str:
    """A linear layer's path without the number of its layer: "encoder/attention/query"."""
    return re.sub(r"/layers_\d+/", "/", path)


@dataclasses.dataclass(frozen=True)
class ExpertLinears:
    """Some of T5's linear layers and the rank of the experts on them, read from one word.

    The word is `[where/]name[:rank]`. The name is q, k, v, o, wi, wi_0, wi_1, wo, T5X's query, key,
    value, out, or `all`; `wi` includes wi_0 and wi_1. Each part of `where` is a stack (encoder,
    decoder) or a sublayer (attention, self_attention, encoder_decoder_attention, mlp).

    Raises:
      UsageError: there is no such layer, or the rank is not a positive number.
    """

    where: frozenset[str]
    name: str
    rank: int | None

    @classmethod
    def read(cls, word: str) -> "ExpertLinears":
        path, colon, rank = word.partition(":")
        *where, name = path.split("/")
        name = SHORT_NAMES.get(name, name)
        expected = {*SHORT_NAMES, *LINEARS, "all"}
        if name not in expected:
            raise UsageError(
                f"PemtConfig.expert_linears has {word!r}, expected one of "
                f"{sorted(expected)}{nearest(name, expected)}."
            )
        _one_of_parts(word, where)
        if colon and not (rank.isascii() and rank.isdecimal() and 1 <= int(rank) < 10**6):
            raise UsageError(f"PemtConfig.expert_linears has {word!r}, expected NAME:RANK.")
        return cls(frozenset(where), name, int(rank) if colon else None)

    def include(self, kind: str) -> bool:
        """Whether the layers of a kind, as of `linear_kind`, are among these."""
        *where, name = kind.split("/")
        named = self.name in ("all", name) or (self.name == "wi" and name.startswith("wi_"))
        return named and self.where <= set(where)


def _one_of_parts(word: str, where: list[str]) -> None:
    sublayers = {"attention", "self_attention", "encoder_decoder_attention", "mlp"}
    for part in where:
        if part not in (expected := {"encoder", "decoder", *sublayers}):
            raise UsageError(
                f"PemtConfig.expert_linears has {word!r} with {part!r}, expected a stack or a "
                f"sublayer, {sorted(expected)}{nearest(part, expected)}."
            )
