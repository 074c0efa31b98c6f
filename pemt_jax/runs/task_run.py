"""One task's run: what it trains, on which data, how it is judged, and what it leaves behind.

`train` makes one, or one for each task of a job; the loops in trainer.py and many_train.py run it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gin
import seqio

from pemt_jax import optimizers, tasks
from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.cli import command as cli
from pemt_jax.common.errors import UsageError
from pemt_jax.data.batching import BatchSource
from pemt_jax.data.buckets import buckets_for
from pemt_jax.data.token_cache import open_mixture, open_split
from pemt_jax.model.methods import split
from pemt_jax.parallel import partitioning, processes
from pemt_jax.runs.build_model import assemble, cast
from pemt_jax.runs.publish import check_publishable, publish
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.evaluator import Evaluator
from pemt_jax.training.loop import TrainResult
from pemt_jax.training.validation import Validation


class TaskRun:
    """What one task's run stands on and where it is kept.

    Args:
      folder: where the run lives.
      task: a SeqIO task or mixture.
      train_steps: updates.
      together: names of all tasks of the job, where it is one of many: batches are padded to the
        longest of theirs, which makes another run than alone.
      evaluators: compiled evaluations by model, shared by runs of equal models; added to.
      base: the base's path.
      chosen: what assemble takes beside base and prompt_text.
      the others: as of train.train.

    Attributes:
      made: the assembly, without its parameters.
      trainable, frozen: flat {path: host array}; the caller gives up `frozen` once it is placed.
      validation: None where the task has no validation split.
      best_metric, higher_is_better: what chooses the best checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        task: str,
        train_steps: int,
        *,
        task_feature_lengths: Mapping[str, int],
        batch_size: int,
        method: str,
        base: str | None,
        library: str,
        expert_name: str | None,
        prompt_text: str | None,
        base_dtype: str,
        frozen_dtype: str,
        buckets: Sequence[int] | int,
        prng: str,
        seed: int,
        eval_batch_size: int,
        mesh,
        together: Sequence[str] = (),
        evaluators: dict | None = None,
        **chosen,
    ):
        self.folder, self.task, self.train_steps = folder, task, train_steps
        self._together = tuple(together)
        self.lengths = dict(task_feature_lengths)
        if method == "pemt_source":
            expert_name = expert_name or task
        self._published = {
            "library": library,
            "base": base,
            "expert_name": expert_name,
            "base_dtype": base_dtype,
        }
        check_publishable(folder, method, base, library, expert_name, (base_dtype, frozen_dtype))
        if prompt_text is None and method != "full":
            prompt_text = tasks.description(task)
        made = assemble(
            method,
            DEFAULT_VOCABULARY,
            base=base,
            prompt_text=prompt_text,
            library=library,
            seed=seed,
            **chosen,
        )
        with processes.first_alone():  # it tokenises what is not cached yet
            parts = open_mixture(task, "train", self.lengths)
            # A mixture may have parts without validation; it is judged on those that have one.
            held_out = [
                open_split(part.task_name, "validation", self.lengths)
                for _, part in parts
                if "validation" in seqio.TaskRegistry.get(part.task_name).splits
            ]
        buckets = buckets_for(buckets, [part for _, part in parts])
        bindings = cli.bindings_of(optimizers)
        if together and "make_schedule.train_steps" in bindings:
            bindings["make_schedule.train_steps"] = str(train_steps)  # of several, its own
        self.identity = made.identity | {
            "task": task,
            "data": {part.task_name: [rate, part.sha256] for rate, part in parts},
            "task_feature_lengths": self.lengths,
            "batch_size": batch_size,
            "buckets": list(buckets),
            "prng": prng,
            "optimizer": optimizers.same_run(bindings),
        }
        if together:
            self.identity["together"] = list(together)
        processes.agree(
            base=self.identity["base"],
            experts=self.identity["experts"],
            data=self.identity["data"],
            configuration=gin.config_str(),
            run=self.identity,
        )
        local_rows = partitioning.local_rows(batch_size, mesh)
        self.source = BatchSource(parts, batch_size, seed, buckets=buckets, local_rows=local_rows)
        model, evaluators = made.model, {} if evaluators is None else evaluators
        key = (model.t5, model.pemt, model.max_decode_length)
        if key not in evaluators:
            evaluators[key] = Evaluator(
                model.predict_batch, model.eval_fn, DEFAULT_VOCABULARY, mesh, made.params_axes
            )
        validation = Validation(evaluators[key], held_out, eval_batch_size, buckets)
        self.validation = validation if held_out else None
        self.best_metric, self.higher_is_better = (
            validation.best_metric if held_out else (None, True)
        )
        self.trainable, frozen = split(made.nested(), made.method)
        self.frozen = cast(frozen, frozen_dtype)
        made.params.clear()
        self.made = made

    @property
    def prompt_length(self) -> int:
        return self.made.model.pemt.prompt_length

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, open.

        Raises:
          UsageError: they are another run's, or farther than `train_steps`.
        """
        kept = Checkpoints(
            self.folder / "checkpoints",
            self.identity,
            self.best_metric,
            self.higher_is_better,
            alone=not self._together,
        )
        start_step = kept.latest_step() or 0
        position = kept.manifest(start_step)["data_step"] if start_step else 0
        processes.agree(step=start_step, data_position=position)
        if start_step > self.train_steps:  # known before the files of the run that is there change
            kept.close()
            raise UsageError(
                f"{self.folder} is at step {start_step}, expected TRAIN_STEPS of at "
                f"least that but found {self.train_steps}."
            )
        return kept

    def publish(self, kept: Checkpoints, result: TrainResult, target: Mapping) -> dict[str, float]:
        """Publish the best checkpoint, or the last where none was judged; return its metrics.

        `target` is like the trained parameters and lies where they are to be restored to.
        """
        best = kept.best_step()
        step = result.step if best is None else best
        values = processes.to_host(kept.restore_trainable(step, target))
        metrics = kept.manifest(step)["metrics"] or {}
        if processes.is_first():
            made_at = publish(
                self.folder, values, self.made, self.task, self.lengths, metrics, **self._published
            )
            print(f"{made_at}: {self.made.method.name} on {self.task}, step {step}, {metrics}")
        processes.barrier()  # what was published is there for whatever comes next
        return metrics


def per_task(name: str, value, count: int) -> list:
    """One value for each of `count` tasks: as many are given, or one for all.

    Raises:
      UsageError: another number, by the `name` of the value.
    """
    if isinstance(value, str | int | None):
        return [value] * count
    if len(value) != count:
        raise UsageError(
            f"Found {len(value)} {name} for {count} tasks, expected one for all or one a task."
        )
    return list(value)
