"""Make tests/data/combinations.npz: low-rank pairs, and what PEFT makes of them by each method.

Run once, in an environment of its own: pip install torch==2.13.0 peft==0.21.2, NumPy. The tests
need none of these; where PEFT is installed tests/library/test_combine.py asks it again. DARE's
masks are drawn as ours are, PEFT's own generator is left out.
"""

from pathlib import Path
from unittest import mock

import numpy as np

FILE = Path(__file__).with_name("combinations.npz")
WO, QUERY = "encoder/layers_0/mlp/wo", "decoder/layers_1/self_attention/query"
WIDTHS = {WO: (10, 8), QUERY: (8, 6)}
RANKS = {WO: 3, QUERY: 2}
EXPERTS = ({WO, QUERY}, {WO}, {WO, QUERY})  # the linear layers of each
WEIGHTS = (0.7, 0.5, -0.4)
DENSITY, RANK, SEED = 0.6, 2, 5
METHODS = (
    "cat",
    *("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"),
    *("svd", "magnitude_prune_svd", "ties_svd", "dare_linear_svd", "dare_ties_svd"),
)


def random_pairs() -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """lora_a [in, R] and lora_b [R, out] of each expert by linear layer."""
    random = np.random.default_rng(0)

    def matrix(rows, columns):
        return (random.normal(size=(rows, columns)) / rows**0.5).astype(np.float32)

    return [
        {
            linear: (
                matrix(WIDTHS[linear][0], RANKS[linear]),
                matrix(RANKS[linear], WIDTHS[linear][1]),
            )
            for linear in sorted(linears)
        }
        for linears in EXPERTS
    ]


def combined_by_peft(experts, method: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pair of each linear layer that `add_weighted_adapter` makes."""
    import peft
    import torch
    from peft.tuners.lora import model as lora_model

    linears = {linear: torch.nn.Linear(*widths, bias=False) for linear, widths in WIDTHS.items()}
    model = None
    for number, expert in enumerate(experts):
        config = peft.LoraConfig(
            target_modules=sorted(expert),
            r=RANKS[WO],
            lora_alpha=RANKS[WO],
            rank_pattern={QUERY: RANKS[QUERY]},
            alpha_pattern={QUERY: RANKS[QUERY]},
        )
        if model is None:
            model = peft.get_peft_model(torch.nn.ModuleDict(linears), config, f"expert_{number}")
        else:
            model.add_adapter(f"expert_{number}", config)
        for linear, (a, b) in expert.items():
            layer = model.base_model.model[linear]
            layer.lora_A[f"expert_{number}"].weight.data = torch.tensor(a.T.copy())
            layer.lora_B[f"expert_{number}"].weight.data = torch.tensor(b.T.copy())
    assert model is not None
    random = {}

    def submodules(module, key):
        random["of this layer"] = np.random.default_rng([SEED, *key.encode()])
        return original(module, key)

    def bernoulli(density):
        drawn = random["of this layer"].random(tuple(density.shape)[::-1])  # in our layout
        return torch.tensor(drawn.T.astype(np.float64) < density.double().numpy()).float()

    original = lora_model._get_submodules
    with (
        mock.patch.object(lora_model, "_get_submodules", submodules),
        mock.patch.object(torch, "bernoulli", bernoulli),
    ):
        model.base_model.add_weighted_adapter(
            [f"expert_{number}" for number in range(len(experts))],
            list(WEIGHTS),
            "combined",
            combination_type=method,
            svd_rank=RANK if method.endswith("svd") else None,
            density=DENSITY,
        )
    return {
        linear: (
            model.base_model.model[linear].lora_A["combined"].weight.detach().numpy().T,
            model.base_model.model[linear].lora_B["combined"].weight.detach().numpy().T,
        )
        for linear in WIDTHS
    }


def main() -> None:
    experts = random_pairs()
    arrays = {
        f"{method}/{linear}/{letter}": matrix
        for method in METHODS
        for linear, pair in combined_by_peft(experts, method).items()
        for letter, matrix in zip("ab", pair, strict=True)
    }
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
