"""Several low-rank pairs of one linear layer as one pair: the methods of PEFT.

The numbers are those of PEFT's `add_weighted_adapter`. With experts e of weights w,

    cat                the products' sum: A = [w_1 A_1 ... w_E A_E], B = [B_1; ...; B_E]
    linear             A = sum of sign(w_e) sqrt|w_e| A_e,  B = sum of sqrt|w_e| B_e
    magnitude_prune    as linear, after each matrix has lost all but its largest numbers
    ties               as magnitude_prune, of the numbers that have the sign of their unweighted
                       sum, divided by how many do (TIES, arXiv 2306.01708)
    dare_linear        as linear, after each number was dropped at random and the others divided
                       by the density (DARE, arXiv 2311.03099)
    dare_ties          both
    svd, ..._svd       the same of the products A_e B_e, weighted by w_e, then cut to a rank by a
                       singular value decomposition: A has orthonormal columns, B the values

`density` is the share of numbers that are kept. Except for `cat` and `svd`, equal rows of all
experts are taken for comparable, although training gives them no common order: they are baselines.

PEFT draws DARE's masks from torch's global generator, here they come from `seed` and the layer's
name. For one adapter PEFT takes `linear` whatever it was asked for; here a method does what it
says. A rank that varies between layers is kept; PEFT pads with zeros, and cuts every layer to the
largest rank of all.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pemt_jax.common.errors import UsageError, no_such
from pemt_jax.library.linears import Pair

OF_FACTORS = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")
OF_PRODUCTS = ("svd", *(f"{method}_svd" for method in OF_FACTORS if method != "linear"))
METHODS = ("cat", *OF_FACTORS, *OF_PRODUCTS)


@dataclasses.dataclass(frozen=True)
class Combination:
    """A method with its settings.

    Attributes:
      method: one of METHODS.
      weights: of the experts, in their order.
      density: share of the numbers that pruning keeps, for the methods that prune.
      rank: what the svd methods cut to; by default the largest rank of the experts on the layer.
      seed: of DARE's masks.

    Raises:
      UsageError: no such method, or a setting that it lacks or has no use for.
    """

    method: str
    weights: tuple[float, ...]
    density: float | None = None
    rank: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise no_such("method", self.method, METHODS)
        object.__setattr__(self, "weights", tuple(map(float, self.weights)))
        if not all(map(math.isfinite, self.weights)):
            raise UsageError(f"The weights are {self.weights}, expected finite numbers.")
        if self.prunes != (self.density is not None):
            expected = "a density" if self.prunes else "no density"
            raise UsageError(
                f"Method {self.method!r} has density {self.density}, expected {expected}."
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"The density is {self.density}, expected a number in (0, 1].")
        if self.rank is not None and (self.method not in OF_PRODUCTS or self.rank < 1):
            expected = "1 or more" if self.method in OF_PRODUCTS else "no rank"
            raise UsageError(f"Method {self.method!r} has rank {self.rank}, expected {expected}.")
        if self.seed < 0:
            raise UsageError(f"The seed is {self.seed}, expected 0 or more.")

    @property
    def prunes(self) -> bool:
        return self.method not in ("cat", "linear", "svd")

    def combine(self, linear: str, pairs: Sequence[Pair | None]) -> Pair:
        """The pair of one linear layer.

        Args:
          linear: its path.
          pairs: one per weight; None for an expert that lacks the layer, which is left out.

        Raises:
          UsageError: ranks differ, and the method needs equal ones; or `rank` is too high.
        """
        found = [(w, *pair) for w, pair in zip(self.weights, pairs, strict=True) if pair]
        weights = np.array([w for w, _, _ in found], np.float32)
        lora_a, lora_b = [a for _, a, _ in found], [b for _, _, b in found]
        ranks = [a.shape[1] for a in lora_a]
        rank = self.rank or max(ranks)
        self._check_rank(linear, lora_a[0].shape[0], lora_b[0].shape[1], sum(ranks))
        if self.method in ("cat", "svd"):
            scaled = [w * a for w, a in zip(weights, lora_a, strict=True)]
            both = np.concatenate(scaled, axis=1), np.concatenate(lora_b, axis=0)
            return both if self.method == "cat" else _cut_pair(*both, rank)
        random = np.random.default_rng([self.seed, *linear.encode()])
        if self.method in OF_PRODUCTS:
            products = [a @ b for a, b in zip(lora_a, lora_b, strict=True)]
            return _cut(self._mix(products, weights, random), rank)
        if len(set(ranks)) > 1:
            raise UsageError(
                f"The experts have ranks {', '.join(map(str, ranks))} beside {linear}, which "
                f"method {self.method!r} cannot combine, expected equal ones, or 'cat' or 'svd'."
            )
        roots = np.sqrt(np.abs(weights))
        return (
            self._mix(lora_a, np.copysign(roots, weights), random),
            self._mix(lora_b, roots, random),
        )

    def _check_rank(self, linear: str, width_in: int, width_out: int, together: int) -> None:
        """UsageError where the rank that is asked for is more than a product here can have."""
        most = min(width_in, width_out, together if self.method == "svd" else width_in)
        if self.rank is not None and self.rank > most:
            raise UsageError(
                f"Found rank {self.rank}, expected at most {most}, which is the highest that "
                f"method {self.method!r} can give beside {linear}."
            )

    def _mix(
        self, matrices: Sequence[np.ndarray], weights: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """One matrix of several, float32."""
        stacked = np.stack(
            [self._prune(np.asarray(matrix, np.float32), random) for matrix in matrices]
        )
        weighted = stacked * weights[:, None, None]
        if "ties" not in self.method:
            return weighted.sum(axis=0)
        agree = np.sign(stacked) == np.where(stacked.sum(axis=0) >= 0, 1, -1)
        return (weighted * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1, dtype=np.float32)

    def _prune(self, matrix: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The matrix with some numbers zero."""
        if self.density is None or self.density == 1:
            return matrix
        if "dare" in self.method:
            kept = random.random(matrix.shape) < self.density
            return matrix * kept / np.float32(self.density)
        dropped = matrix.size - int(self.density * matrix.size)
        order = np.argsort(np.abs(matrix), axis=None)
        pruned = matrix.copy()
        pruned.ravel()[order[:dropped]] = 0
        return pruned


def _cut(product: np.ndarray, rank: int) -> Pair:
    """The pair of a rank whose product is nearest to a matrix."""
    u, s, vh = np.linalg.svd(product, full_matrices=False)
    return u[:, :rank], s[:rank, None] * vh[:rank]


def _cut_pair(a: np.ndarray, b: np.ndarray, rank: int) -> Pair:
    """As `_cut` of A B, which is never computed: the decomposition is of a small matrix."""
    (q_a, r_a), (q_b, r_b) = np.linalg.qr(a), np.linalg.qr(b.T)
    u, b = _cut(r_a @ r_b.T, rank)
    return q_a @ u, b @ q_b.T
