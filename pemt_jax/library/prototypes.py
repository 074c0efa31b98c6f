"""Arrow's prototypes: by which inputs each expert of a bank is recognised.

The prototype of an expert beside a linear layer x W is the unit vector v that maximises |v A B|,
the first left singular vector of A B (Arrow, arXiv 2405.11157). PEFT, which writes the layer as W x
with a weight B A, calls it the first right singular vector, and finds it by 15 steps of power
iteration from a random start. Its sign has no meaning. A zero expert has a zero prototype.
"""

import re
from collections.abc import Mapping

import numpy as np

BANK = re.compile(r"(?P<module>.*/(?:\w+_)?)experts/lora_a")


def prototypes(bank: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the parameters `gate/prototypes` [X, E] of each linear layer with experts.

    Args:
      bank: of `stack_experts`.
    """
    return {
        f"{match['module']}gate/prototypes": _first_singular_vectors(
            np.asarray(bank[path], np.float64),
            np.asarray(bank[path.removesuffix("a") + "b"], np.float64),
        )
        for path in bank
        if (match := BANK.fullmatch(path))
    }


def _first_singular_vectors(a_XER: np.ndarray, b_ERD: np.ndarray) -> np.ndarray:
    """[X, E], from decompositions of R x R matrices: A B = Q (R_A R_B^T) Q_B^T."""
    vectors = []
    for a_XR, b_RD in zip(a_XER.swapaxes(0, 1), b_ERD, strict=True):
        q_a, r_a = np.linalg.qr(a_XR)
        u, s, _ = np.linalg.svd(r_a @ np.linalg.qr(b_RD.T)[1].T)
        vectors.append(q_a @ u[:, 0] * (s[0] > 0))
    return np.stack(vectors, axis=1).astype(np.float32)
