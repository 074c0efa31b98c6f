"""The Python API: what a notebook imports, as `pemt_jax.NAME`.

    import pemt_jax as pemt

    movies = pemt.task("movies", {"train": rows, "validation": more}, "sentence: {text}",
                       ("negative", "positive"), "Say whether a review is good or bad.")
    library = pemt.Library("runs/library")
    pemt.train_expert(movies, library, "runs/movies", train_steps=500)
    model = pemt.adapt(products, library, ["movies"], "runs/products", train_steps=200)
    model.evaluate("test")                      # {"accuracy": ..., "gate/movies": ...}
    model.predict(["sentence: It broke."])      # [Prediction(prediction=..., gate=...)]

Every function makes a TrainConfig and trains it as `python -m pemt_jax.train` does: the same run,
with the same checkpoints, that a second call resumes. What is not named here is an option of
run_config.TrainConfig, given by its own name.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.finished_config import EvaluateConfig, FinishedConfig, PredictConfig
from pemt_jax.library.expert import Expert, expert_names, load_expert
from pemt_jax.library.transfer import add_expert, remove_expert
from pemt_jax.optimizers import Optimizer, Schedule
from pemt_jax.reporting.page import write_report
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs import evaluate as evaluating
from pemt_jax.runs import train as training
from pemt_jax.runs.finished import FinishedRun, open_run
from pemt_jax.runs.predict import Prediction, Predictor
from pemt_jax.tasks import Dataset
from pemt_jax.tasks import from_rows as task
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

__all__ = [
    "Dataset",
    "Library",
    "Model",
    "Optimizer",
    "PemtConfig",
    "Prediction",
    "Schedule",
    "T5Config",
    "TrainConfig",
    "adapt",
    "open_model",
    "task",
    "train_expert",
    "train_run",
    "write_report",
]

LENGTHS = {"inputs": 128, "targets": 16}


@dataclasses.dataclass(frozen=True)
class Library:
    """A folder of experts; it need not exist yet."""

    folder: str | os.PathLike

    def __iter__(self) -> Iterator[str]:
        """The names of the experts, sorted."""
        return iter(expert_names(self.folder))

    def __getitem__(self, name: str) -> Expert:
        """The verified expert; UsageError for an unknown name, PemtError for a damaged one."""
        return load_expert(self.folder, name)

    def add(self, folder: str | os.PathLike, name: str | None = None) -> Expert:
        """Copy the expert in `folder` into the library, under its folder's name or another."""
        return add_expert(self.folder, folder, name)

    def remove(self, name: str) -> None:
        """Remove an expert."""
        remove_expert(self.folder, name)


class Model:
    """A finished run: evaluated and predicted with.

    Args:
      model_dir: a run's folder, or that of an artefact, an expert or a base.
      moved: initial_checkpoint_path, library, vocabulary: where these are now; scan_layers.
    """

    def __init__(self, model_dir: str | os.PathLike, **moved: Any):
        self._config = FinishedConfig(os.fspath(model_dir), **moved)
        self.run: FinishedRun = open_run(self._config, DEFAULT_VOCABULARY)

    def evaluate(
        self, split: str = "test", task: "Dataset | str | None" = None, **options: object
    ) -> dict[str, float]:
        """Metrics on a split of the run's task, or of another; options of EvaluateConfig."""
        name = None if task is None else name_of(task)
        config = EvaluateConfig.of(
            **vars(self._config), split=split, mixture_or_task_name=name, **options
        )
        return evaluate_run(config, self.run)

    def predict(self, texts: Iterable[str], **options: object) -> list[Prediction]:
        """A prediction for each text, with its score and gates; options of PredictConfig."""
        config = PredictConfig.of(**vars(self._config), **options)
        return list(Predictor(self.run, config)(texts))


def open_model(model_dir: str | os.PathLike, **moved: Any) -> Model:
    """Open a finished run; see `Model`."""
    return Model(model_dir, **moved)


def train_expert(
    task: "Dataset | str",
    library: Library,
    model_dir: str | os.PathLike,
    *,
    train_steps: int,
    learning_rate: float = 5e-4,
    **options: object,
) -> Expert:
    """Stage 1: train an expert on a source task; return it as the library has it.

    Args:
      task: a data set, or the name of a SeqIO task or mixture.
      library: gets the expert under its task's name, or `expert_name`.
      model_dir: where the run is kept.
      train_steps: updates.
      learning_rate: at the start, from where it falls linearly to 0.
      options: of TrainConfig.

    Raises:
      UsageError, PemtError: see runs.train.train.
    """
    config = make_config(task, library, model_dir, train_steps, learning_rate, options)
    train_run(config.replace(method="pemt_source"))
    return library[config.experts.expert_name or name_of(task)]


def adapt(
    task: "Dataset | str",
    library: Library,
    experts: Sequence[str],
    model_dir: str | os.PathLike,
    *,
    train_steps: int,
    learning_rate: float = 3e-4,
    **options: object,
) -> Model:
    """Stage 2: adapt to a target task by a gate over experts of the library.

    Args:
      experts: their names; none trains the same adapter without experts (method "adapter").
      the others: as of `train_expert`.
    """
    config = make_config(task, library, model_dir, train_steps, learning_rate, options)
    method = "pemt_target" if experts else "adapter"
    train_run(config.replace(method=method, experts=tuple(experts)))
    return Model(model_dir)


def train_run(
    config: TrainConfig, config_text: Callable[[], str] | None = None
) -> dict[str, float]:
    """Train any run; what `python -m pemt_jax.train` calls. See runs.train.train."""
    keep_tensorflow_off_the_gpu()
    return training.train(config, config_text)


def evaluate_run(config: EvaluateConfig, run: FinishedRun | None = None) -> dict[str, float]:
    """Evaluate a finished run; what `python -m pemt_jax.evaluate` calls. See runs.evaluate."""
    keep_tensorflow_off_the_gpu()
    return evaluating.evaluate(config, run)


def keep_tensorflow_off_the_gpu() -> None:
    """Leave an accelerator's memory to JAX, as the commands do; TensorFlow only reads data."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # it is in use already
        tf.config.set_visible_devices([], "GPU")


def make_config(
    task: "Dataset | str",
    library: Library,
    model_dir: str | os.PathLike,
    train_steps: int,
    learning_rate: float,
    options: Mapping[str, object],
) -> TrainConfig:
    """The configuration of a run with the API's defaults where `options` has none."""
    schedule = Schedule("linear", learning_rate, train_steps=train_steps)
    defaults = {
        "task_feature_lengths": LENGTHS,
        "batch_size": 16,
        "optimizer": Optimizer(schedule=schedule),
        "eval_every": max(train_steps // 5, 1),
    }
    return TrainConfig.of(
        model_dir=os.fspath(model_dir),
        mixture_or_task_name=name_of(task),
        train_steps=train_steps,
        library=os.fspath(library.folder),
        **defaults | dict(options),
    )


def name_of(task: "Dataset | str") -> str:
    """The name under which a task is registered."""
    return task if isinstance(task, str) else task.name
