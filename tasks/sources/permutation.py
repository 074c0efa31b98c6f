"""The shuffle behind the paper's splits: PyTorch's permutation of n rows, without PyTorch.

The authors draw every split from `torch.randperm(n)` with a CPU generator seeded 42. On the CPU
that is a Fisher-Yates shuffle from the front: element i is swapped with element
i + (u mod (n - i)), where u is the next 32-bit word of a Mersenne Twister (MT19937) under its
standard seeding, which is also NumPy's for `RandomState(seed)`.
"""

import functools

import numpy as np

DATA_SEED = 42  # the authors' `data_seed`


@functools.lru_cache(16)
def torch_randperm(n: int, seed: int = DATA_SEED) -> np.ndarray:
    """Return `torch.randperm(n)` under `manual_seed(seed)`, int64 [n], read-only; n < 2**32."""
    words = np.random.RandomState(seed).randint(0, 1 << 32, size=max(n - 1, 0), dtype=np.uint32)
    partners = np.arange(max(n - 1, 0)) + words % np.arange(n, 1, -1)
    elements = list(range(n))
    for element, partner in enumerate(partners.tolist()):
        elements[element], elements[partner] = elements[partner], elements[element]
    permutation = np.array(elements, np.int64)
    permutation.flags.writeable = False  # shared between callers by the cache
    return permutation
