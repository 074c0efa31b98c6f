"""A run is one value: `TrainConfig`, made of parts, each a frozen dataclass.

gin, the command line and Python fill it by the flat names of its fields (T5X's names where T5X has
one), wherever in the parts they are:

    TrainConfig.of(model_dir="runs/cb", mixture_or_task_name="pemt_cb", train_steps=500,
                   task_feature_lengths={"inputs": 256, "targets": 8}, batch_size=32)

`train`, jobs of several tasks, `plan` and the T5X driver read nothing else, and a checkpoint's
identity is made of it. A new option is a field here and the place that uses it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError
from pemt_jax.common.flat_config import (
    Flat,
    Part,
    at_least,
    bucket_lengths,
    choose,
    lengths,
    not_blank,
    number,
)
from pemt_jax.config import DTYPES, MINI_T5, REFERENCE_OPTIONS, PemtConfig, T5Config, base_path
from pemt_jax.optimizers import Optimizer, Transformation

PRNGS = ("threefry2x32", "rbg")
TASK_LOOPS = ("map", "vmap")
DEFAULT_BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Part):
    """What is trained, and from which pretrained model.

    Attributes:
      method: a row of methods.METHODS.
      initial_checkpoint_path: the base model, a Hugging Face T5 folder, its name on the hub
        (OWNER/NAME[@REVISION]), a T5X checkpoint or "mini_t5"; None to start from `t5`.
      t5: shape of a new backbone.
      options: choices of PEMT.
      prompt_text: the prompt's text; None for the task's own description; or one per task.
      dropout_rate, broadcast_dropout, dtype, remat_policy, scan_layers: override the base's
        (config.T5Config); remat_policy takes less memory, scan_layers less time to compile.
      embedding_rows: keep only the first rows of the base's embedding.
      frozen_dtype: "bfloat16" halves the memory of the frozen parameters.
      base_dtype: in which methods full and decoder store their base, "float32" or "bfloat16".
      max_decode_length: most tokens to generate; None for the longest target of the split.
    """

    method: str = "pemt_target"
    initial_checkpoint_path: str | None = MINI_T5
    t5: T5Config | None = None
    options: PemtConfig | None = None
    prompt_text: str | Sequence[str] | None = None
    dropout_rate: float | None = None
    broadcast_dropout: bool | None = None
    dtype: str | None = None
    remat_policy: str | None = None
    scan_layers: bool | None = None
    embedding_rows: int | None = None
    frozen_dtype: str = "float32"
    base_dtype: str = "float32"
    max_decode_length: int | None = None

    def __post_init__(self):
        not_blank(INITIAL_CHECKPOINT_PATH=self.initial_checkpoint_path)
        if path := self.initial_checkpoint_path:
            object.__setattr__(self, "initial_checkpoint_path", base_path(path))
        for text in [prompt] if isinstance(prompt := self.prompt_text, str) else prompt or ():
            not_blank("a text", PROMPT_TEXT=text)
        for name in ("frozen_dtype", "base_dtype"):
            choose(name.upper(), getattr(self, name), sorted(DTYPES))
        at_least(1, MAX_DECODE_LENGTH=self.max_decode_length, EMBEDDING_ROWS=self.embedding_rows)
        if self.dropout_rate is not None:
            number("DROPOUT_RATE", self.dropout_rate, below=1)

    def shape(self, base: T5Config) -> T5Config:
        """The shape of the base with this configuration's overrides."""
        names = ("dropout_rate", "broadcast_dropout", "dtype", "remat_policy", "scan_layers")
        overrides = {name: getattr(self, name) for name in names}
        overrides["vocab_size"] = self.embedding_rows
        return dataclasses.replace(base, **{k: v for k, v in overrides.items() if v is not None})


@dataclasses.dataclass(frozen=True)
class DataConfig(Part):
    """Which examples are read, and how they are batched.

    Attributes:
      mixture_or_task_name: a SeqIO task or mixture, trained as one task with one prompt; several
        names train each in one job, in MODEL_DIR/NAME.
      task_feature_lengths: longest inputs and targets, in tokens.
      batch_size: examples per update.
      eval_batch_size: examples per batch of an evaluation.
      buckets: input lengths to pad to, pairs of input and target lengths, or how many input lengths
        to choose from the data; None for the 4 pairs, and 2 lengths of evaluation, that need the
        least padding. A step is compiled for each shape, fewer waste more padding.
    """

    mixture_or_task_name: str | Sequence[str]
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    eval_batch_size: int = 128
    buckets: Sequence[int] | Sequence[Sequence[int]] | int | None = None

    def __post_init__(self):
        at_least(1, BATCH_SIZE=self.batch_size, EVAL_BATCH_SIZE=self.eval_batch_size)
        lengths("TASK_FEATURE_LENGTHS", self.task_feature_lengths)
        bucket_lengths("BUCKETS", self.buckets)


@dataclasses.dataclass(frozen=True)
class ExpertsConfig(Part):
    """The expert library and what is taken from it.

    Attributes:
      library: its folder.
      experts: names of the frozen experts to mix, in the order of the gate's columns.
      initial_expert: an expert to start training from.
      expert_name: name under which an expert enters the library; None for the task's in stage 1,
        and for a `lora` to stay out of it.
    """

    library: str | None = None
    experts: Sequence[str] = ()
    initial_expert: str | None = None
    expert_name: str | None = None


@dataclasses.dataclass(frozen=True)
class MeshConfig(Part):
    """How the devices of a run share it; see parallel/partitioning.py.

    Attributes:
      model_parallel: devices over which the parameters are split; the rest split the batch.
      expert_parallel: devices over which the experts are split.
      fully_sharded: split the backbone's matrices over the data devices as well.
    """

    model_parallel: int = 1
    expert_parallel: int = 1
    fully_sharded: bool = False

    def __post_init__(self):
        at_least(1, MODEL_PARALLEL=self.model_parallel, EXPERT_PARALLEL=self.expert_parallel)


@dataclasses.dataclass(frozen=True)
class LoopConfig(Part):
    """How long a run trains and what happens on the way.

    Attributes:
      train_steps: updates; of several tasks one number for all or one each.
      seed: of initial values, dropout and data order.
      prng: "threefry2x32", the same bits everywhere; "rbg", quicker dropout on accelerators.
      eval_every, save_every, log_every: steps between evaluations, checkpoints, log lines.
      patience: evaluations without a better one after which the run ends early.
      task_loop: how several tasks on one device are updated, one after the other, "map", or all at
        once, "vmap".
      profile_steps: write a JAX profile of so many steps to MODEL_DIR/profile; None for none.
    """

    train_steps: int | Sequence[int]
    seed: int = 0
    prng: str = "threefry2x32"
    eval_every: int | None = None
    save_every: int | None = None
    log_every: int = 20
    patience: int | None = None
    task_loop: str = "map"
    profile_steps: int | None = None

    def __post_init__(self):
        many: Any = self.train_steps
        for steps in many if isinstance(many, list | tuple) else [many]:
            at_least(0, TRAIN_STEPS=steps)
        number("SEED", self.seed)  # not None, T5X's default
        at_least(0, largest=2**63 - 1, SEED=self.seed)
        choose("PRNG", self.prng, PRNGS)
        choose("TASK_LOOP", self.task_loop, TASK_LOOPS)
        names = ("log_every", "eval_every", "save_every", "patience", "profile_steps")
        at_least(1, **{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Flat):
    """A training run; see the parts for their fields.

    Attributes:
      model_dir: where the run is kept.
      optimizer: an Optimizer, or any optax transformation, of which a checkpoint then knows no
        more than that it was given.
    """

    model_dir: str
    data: DataConfig
    loop: LoopConfig
    optimizer: Transformation = Optimizer()
    model: ModelConfig = ModelConfig()
    experts: ExpertsConfig = ExpertsConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        not_blank(MODEL_DIR=self.model_dir, LIBRARY=self.experts.library)
        experts = self.experts
        not_blank("a name", INITIAL_EXPERT=experts.initial_expert, EXPERT_NAME=experts.expert_name)

    @property
    def folder(self) -> Path:
        return storage.path(self.model_dir)

    @property
    def steps(self) -> int:
        """The updates of one task's run; UsageError where numbers of several are given."""
        if not isinstance(self.loop.train_steps, int):
            raise UsageError(
                f"Found TRAIN_STEPS {self.loop.train_steps} for one task, expected one number."
            )
        return self.loop.train_steps

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks or mixtures that are trained, one each in a job of several."""
        names = self.data.mixture_or_task_name
        return (names,) if isinstance(names, str) else tuple(names)

    @property
    def is_job(self) -> bool:
        """Whether several tasks were asked for, each trained by itself."""
        return not isinstance(self.data.mixture_or_task_name, str)

    def as_reference(self) -> "TrainConfig":
        """This run with the authors' choices where our defaults differ, as runs/reference.gin."""
        options, optimizer = self.model.options or PemtConfig(), self.optimizer
        if isinstance(optimizer, Optimizer) and optimizer.name == "adamw":
            optimizer = dataclasses.replace(optimizer, name="adamw_hf")
        return self.replace(
            options=dataclasses.replace(options, **REFERENCE_OPTIONS),
            optimizer=optimizer,
            broadcast_dropout=False,
            max_decode_length=19,  # their 20 count the start token
            embedding_rows=32100,
        )

    def of_tasks(self) -> "list[TrainConfig]":
        """The configuration of each task's own run, in MODEL_DIR/TASK.

        Raises:
          UsageError: no task, one twice, or numbers of steps, prompts and names that do not fit.
        """
        names, count = self.tasks, len(self.tasks)
        if not names:
            raise UsageError("MIXTURE_OR_TASK_NAME names no task, expected at least one.")
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise UsageError(f"MIXTURE_OR_TASK_NAME names {twice!r} twice, expected each once.")
        if self.experts.expert_name and count > 1:
            raise UsageError(
                f"Found EXPERT_NAME {self.experts.expert_name!r} for {count} tasks, expected none, "
                "for each expert has its task's name."
            )
        steps = per_task("TRAIN_STEPS", self.loop.train_steps, count)
        prompts = per_task("PROMPT_TEXT", self.model.prompt_text, count)
        return [
            self.replace(
                model_dir=str(self.folder / name),
                mixture_or_task_name=name,
                train_steps=steps[i],
                prompt_text=prompts[i],
                optimizer=of_task(self.optimizer, i),
            )
            for i, name in enumerate(names)
        ]


def of_task(optimizer: Transformation, task: int) -> Transformation:
    """The optimizer as one task of a job has it."""
    return optimizer.of_task(task) if isinstance(optimizer, Optimizer) else optimizer


def per_task(name: str, value, count: int) -> list:
    """One value for each of `count` tasks: as many are given, or one for all.

    Raises:
      UsageError: another number, by the `name` of the value.
    """
    if isinstance(value, str | int | None):
        return [value] * count
    if len(value) != count:
        raise UsageError(
            f"Found {len(value)} {name} for {count} tasks, expected one for all or one per task."
        )
    return list(value)
