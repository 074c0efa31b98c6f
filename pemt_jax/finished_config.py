"""What `evaluate` and `predict` are asked: which finished run, and what of it."""

import dataclasses
from collections.abc import Mapping, Sequence

from pemt_jax.common.errors import UsageError
from pemt_jax.common.flat_config import Flat, Part, at_least, bucket_lengths, lengths, not_blank
from pemt_jax.run_config import MeshConfig


@dataclasses.dataclass(frozen=True)
class FinishedConfig(Part):
    """Which finished run to open.

    Attributes:
      model_dir: a run's folder, an artefact's, an expert's or a base's.
      initial_checkpoint_path, library: the base and the experts, if they were moved.
          vocabulary: a spiece.model or "bytes"; None for the one beside the base.
          scan_layers: takes less time to compile, see config.T5Config.
    """

    model_dir: str
    initial_checkpoint_path: str | None = None
    library: str | None = None
    vocabulary: str | None = None
    scan_layers: bool = False

    def __post_init__(self):
        names = ("model_dir", "initial_checkpoint_path", "library", "vocabulary")
        not_blank(**{name.upper(): getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Flat):
    """An evaluation of a finished run.

    Attributes:
      more_model_dirs: finished runs that are evaluated likewise after it, in the same process.
      mixture_or_task_name, task_feature_lengths: None for those it was trained on.
      split: of the task, or of every task of the mixture.
      batch_size: examples per batch.
      buckets: input lengths to pad to, or how many to choose from the data; None for 2.
      general_text: in place of a task a text, a file or a folder of files, on which span corruption
        is evaluated: the loss there minus that of the base is what adapting has forgotten.
    """

    run: FinishedConfig
    more_model_dirs: Sequence[str] = ()
    mixture_or_task_name: str | None = None
    split: str = "test"
    task_feature_lengths: Mapping[str, int] | None = None
    batch_size: int = 128
    buckets: Sequence[int] | int | None = None
    general_text: str | None = None
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        not_blank("a name", MIXTURE_OR_TASK_NAME=self.mixture_or_task_name, SPLIT=self.split)
        for folder in self.more_model_dirs:
            not_blank(**{"a folder of MORE_MODEL_DIRS": folder})
        not_blank(GENERAL_TEXT=self.general_text)
        if self.general_text and (self.mixture_or_task_name or self.task_feature_lengths):
            raise UsageError(
                "GENERAL_TEXT is set, which has its own task and lengths, expected no "
                "MIXTURE_OR_TASK_NAME and no TASK_FEATURE_LENGTHS beside it."
            )
        at_least(1, BATCH_SIZE=self.batch_size)
        bucket_lengths("BUCKETS", self.buckets)
        if self.task_feature_lengths is not None:
            lengths("TASK_FEATURE_LENGTHS", self.task_feature_lengths)

    @property
    def each(self) -> "list[EvaluateConfig]":
        """An evaluation per run."""
        runs = [self.run] + [
            dataclasses.replace(self.run, model_dir=folder) for folder in self.more_model_dirs
        ]
        return [dataclasses.replace(self, run=run, more_model_dirs=()) for run in runs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(Flat):
    """Predictions of a finished run.

    Attributes:
      input_file, output_file: None for standard input and output; an output_file that ends in
        .jsonl gets scores and gates too.
      batch_size: lines decoded together.
      max_input_length: tokens kept of a line, the end token included; None for the run's.
      max_decode_length: most tokens to generate; None for the run's target length.
      num_beams: 1 for greedy search.
    """

    run: FinishedConfig
    input_file: str | None = None
    output_file: str | None = None
    batch_size: int = 32
    max_input_length: int | None = None
    max_decode_length: int | None = None
    num_beams: int = 1
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        not_blank(INPUT_FILE=self.input_file, OUTPUT_FILE=self.output_file)
        names = ("batch_size", "max_input_length", "max_decode_length", "num_beams")
        at_least(1, **{name.upper(): getattr(self, name) for name in names})
