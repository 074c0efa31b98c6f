"""One task's run: what it trains, on which data, how it is evaluated, and what it leaves behind."""

import dataclasses
import logging
import shlex
from collections.abc import Mapping, Sequence

import seqio

from pemt_jax import tasks
from pemt_jax.checkpoints.folder import check_supported
from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.checkpoints.newest import stored_identity
from pemt_jax.common.errors import say
from pemt_jax.common.versions import versions
from pemt_jax.data.batching import BatchSource
from pemt_jax.data.buckets import eval_buckets, longest_row, train_buckets
from pemt_jax.data.token_cache import open_mixture, open_split
from pemt_jax.interop.base import Base
from pemt_jax.library.artefact import brief
from pemt_jax.library.expert import default_library
from pemt_jax.model.methods import get_method
from pemt_jax.optimizers import Optimizer
from pemt_jax.parallel import partitioning, processes
from pemt_jax.parallel.capacity import check_batch
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs.build_model import build_model, open_base
from pemt_jax.runs.model_dir import Config, check_model_dir, with_one_base
from pemt_jax.runs.probe import check_answers, probe
from pemt_jax.runs.publish import (
    against_majority,
    check_model,
    check_publishable,
    folders_written,
    publish,
)
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, beside, prefer
from pemt_jax.training.evaluator import Evaluator
from pemt_jax.training.metrics_log import MetricsLog
from pemt_jax.training.run import Run, Trained, TrainResult
from pemt_jax.training.validation import Validation

log = logging.getLogger(__name__)


def complete(config: Config) -> Config:
    """The configuration of one task with its library, expert name and prompt filled in."""
    method, task = get_method(config.model.method), config.tasks[0]
    name = config.experts.expert_name or (task if config.model.method == "pemt_source" else None)
    prompt = config.model.prompt_text
    if prompt is None and method.prompt:
        prompt = tasks.description(task)
    library = config.experts.library or str(default_library())
    return config.replace(library=library, expert_name=name, prompt_text=prompt)


def open_runs(config: TrainConfig) -> "list[TaskRun]":
    """The runs of a job's tasks, over one base that is read once."""
    mesh, base, evaluators, found = make_mesh(config), None, {}, []
    for own in with_one_base(config).of_tasks():
        if found and config.data.buckets is None:
            own = own.replace(buckets=found[0].buckets)
        run = TaskRun(own, mesh, base, together=config.tasks, evaluators=evaluators)
        if found:
            run.take_frozen()  # those of the first are those of all
        base = base or run.base
        found.append(run)
    for run in found:
        run.base = None
    return found


def make_mesh(config: TrainConfig):
    """The mesh of a run's devices."""
    return partitioning.make_mesh(
        model=config.mesh.model_parallel, expert=config.mesh.expert_parallel
    )


class TaskRun:
    """What one task's run depends on and where it is kept.

    Args:
      config: of one task.
      mesh: its devices; None for those of the configuration.
      base: where it has been read already.
      together: names of all tasks of the job, where it is one of many: batches are padded to the
        longest of theirs, which makes another run than alone.
      evaluators: compiled evaluations by model, shared by runs of equal models; added to.

    Attributes:
      built: the model, without its parameters.
      trainable: flat {path: host array}.
      buckets: to which its batches are padded.
      source: batches by step.
      validation: None where the task has no validation split.
      identity: what makes the run this run, for its checkpoints.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh=None,
        base: Base | None = None,
        *,
        together: Sequence[str] = (),
        evaluators: dict | None = None,
    ):
        self.config = config = complete(config)
        self.folder, self.task = config.folder, config.tasks[0]
        self.mesh, self._together = mesh or make_mesh(config), tuple(together)
        _ = config.steps  # one number
        check_supported(config.folder)
        if base is None:  # else another task of this job has asked
            check_answers(folders_written(config))
        check_model_dir(config.folder)
        if base is None:
            probe(folders_written(config))
        check_publishable(config)
        self.config = config = with_one_base(config)
        path = config.model.initial_checkpoint_path
        prefer(path and beside(path))
        if path and base is None and processes.is_first():
            say(f"reading the base {path}")
        self.base = base or open_base(config.model)
        self.built = build_model(
            config.model, DEFAULT_VOCABULARY, config.experts, config.loop.seed, self.base
        )
        check_model(config, self.built)
        parts, held_out = self._open_data()
        self.buckets = buckets = self._buckets(parts)
        self._check_batches([part for _, part in parts], held_out)
        self.identity = self._identity(parts, buckets)
        processes.agree(
            base=self.identity["base"],
            experts=self.identity["experts"],
            data=self.identity["data"],
            configuration=dataclasses.asdict(dataclasses.replace(config, optimizer=None)),
            optimizer=self.identity["optimizer"],
            run=self.identity,
        )
        size = config.data.batch_size
        rows = partitioning.local_rows(size, self.mesh)
        self.source = BatchSource(parts, size, config.loop.seed, buckets=buckets, local_rows=rows)
        self.validation, self.best_metric, self.higher_is_better = None, None, True
        if held_out:
            evaluator = self._evaluator({} if evaluators is None else evaluators)
            lengths = eval_buckets(buckets, held_out)
            self.validation = Validation(evaluator, held_out, config.data.eval_batch_size, lengths)
            self.best_metric, self.higher_is_better = self.validation.best_metric
        self.trainable, self._frozen = self.built.split()
        self.built.params.clear()
        log.info(
            "%s trains %d parameters.", self.task, sum(x.size for x in self.trainable.values())
        )

    @property
    def prompt_length(self) -> int:
        return self.built.model.pemt.prompt_length

    def take_frozen(self) -> dict:
        """The frozen parameters, flat, on the host; given up here."""
        frozen, self._frozen = self._frozen, {}
        return frozen

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, open.

        Raises:
          UsageError: they are another run's.
        """
        kept = Checkpoints(
            self.folder / "checkpoints",
            self.identity,
            self.best_metric,
            self.higher_is_better,
            alone=not self._together,
        )
        start_step = kept.latest_step() or 0
        position = kept.manifest(start_step).get("data_step") if start_step else 0
        processes.agree(step=start_step, data_position=position)
        return kept

    def in_loop(
        self, trainer: Trained, kept: Checkpoints, log: MetricsLog, metrics: dict, name: str = ""
    ) -> Run:
        """The run as the loop has it; `metrics` gets its best ones when it is published."""

        def published(result: TrainResult) -> None:
            metrics[self.task] = self.publish(kept, result, trainer.trainable_like)

        optimizer = self.config.optimizer
        return Run(
            trainer,
            self.config.steps,
            kept,
            log,
            name=name,
            validation=self.validation,
            best_metric=self.best_metric,
            higher_is_better=self.higher_is_better,
            patience=self.config.loop.patience,
            learning_rate=optimizer.learning_rate if isinstance(optimizer, Optimizer) else None,
            publish=published,
            versions=versions(),
        )

    def publish(self, kept: Checkpoints, result: TrainResult, target: Mapping) -> dict[str, float]:
        """Publish the best checkpoint, or the last where none was evaluated; return its metrics.

        `target` has the shapes and shardings of the trained parameters.
        """
        step, found, metrics = kept.restore_best(result.step, target)
        values = processes.to_host(found)
        if processes.is_first():
            majority = self.validation and self.validation.majority
            notes = against_majority(self.task, metrics, majority)
            folder = publish(self.config, values, self.built, metrics, notes)
            shown = ", ".join(f"{name} {value}" for name, value in brief(metrics).items())
            print(f"{folder}: {self.built.method.name} on {self.task}, step {step}: {shown}")
            if name := self.config.experts.expert_name:
                library = self.config.experts.library
                print(
                    f"expert {name!r} is in the library {library}: "
                    f"python -m pemt_jax.library list --library {shlex.quote(str(library))}"
                )
        processes.barrier()  # what was published is there for whatever comes next
        return metrics

    def _open_data(self) -> tuple[list, list]:
        """(rate, split) of the training parts, and the validation splits."""
        lengths = dict(self.config.data.task_feature_lengths)
        with processes.first_alone():  # it tokenises what is not cached yet
            parts = open_mixture(self.task, "train", lengths)
            # A mixture may have parts without validation; it is evaluated on those that have one.
            held_out = [
                open_split(part.task_name, "validation", lengths)
                for _, part in parts
                if "validation" in seqio.TaskRegistry.get(part.task_name).splits
            ]
        for _, part in parts:
            log.info("%s has %d training examples.", part.task_name, len(part))
        return parts, held_out

    def _check_batches(self, parts: Sequence, held_out: Sequence) -> None:
        """Raise UsageError for batches that cannot be in memory."""
        data, width = self.config.data, self.built.model.t5.emb_dim
        inputs = [bucket if isinstance(bucket, int) else bucket[0] for bucket in self.buckets]
        for setting, rows, splits, buckets in (
            ("BATCH_SIZE", data.batch_size, parts, inputs),
            ("EVAL_BATCH_SIZE", data.eval_batch_size, held_out, ()),
        ):
            tokens = max((longest_row(split, buckets) for split in splits), default=0)
            check_batch(f"{setting} {rows} of {tokens} tokens", rows, tokens, width)

    def _buckets(self, parts: Sequence) -> tuple:
        """The lengths that batches are padded to, chosen where the user leaves that to us.

        A run that is resumed keeps those that it began with, also if another version chose them.
        The tasks of a job have theirs in common: each of its batches has the longest shape of all.
        """
        given, splits = self.config.data.buckets, [part for _, part in parts]
        if given is None:
            given = stored_identity(self.folder / "checkpoints").get("buckets")
        if given is None and self._together:
            lengths = dict(self.config.data.task_feature_lengths)
            with processes.first_alone():
                splits = [
                    part
                    for name in self._together
                    for _, part in open_mixture(name, "train", lengths)
                ]
        return train_buckets(given, splits)

    def _identity(self, parts: Sequence, buckets: Sequence[int]) -> dict:
        config, optimizer = self.config, self.config.optimizer
        known = isinstance(optimizer, Optimizer)
        identity = self.built.identity | {
            "task": self.task,
            "data": {part.task_name: [rate, part.sha256] for rate, part in parts},
            "task_feature_lengths": dict(config.data.task_feature_lengths),
            "batch_size": config.data.batch_size,
            "buckets": list(buckets),
            "prng": config.loop.prng,
            "optimizer": optimizer.identity() if known else {},
        }
        return identity | ({"together": list(self._together)} if self._together else {})

    def _evaluator(self, evaluators: dict) -> Evaluator:
        model = self.built.model
        key = (model.t5, model.pemt, model.max_decode_length)
        if key not in evaluators:
            evaluators[key] = Evaluator(
                model.predict_batch,
                model.eval_fn,
                DEFAULT_VOCABULARY,
                self.mesh,
                self.built.params_axes,
            )
        return evaluators[key]
