"""Checkpoints of a run: what is trained, and nothing else.

A checkpoint is one orbax step folder with two items, renamed into place together:

    state     every leaf of the train state under its path: step, trainable/..., opt_state/...
    manifest  JSON: sha256, shape and dtype of every leaf, the run's identity, and what the run
              needs beside arrays (data position, seed, versions, metrics, evaluations so far)

Since both are renamed (in a bucket committed) together, no checkpoint is ever without its manifest;
a folder whose manifest is missing or damaged is set aside. Restoring checks every leaf against the
manifest. The two latest checkpoints are kept, so that there is one before a damaged one, and the
best one by validation metric; of equal ones the earlier is the best. Saving is asynchronous: only
the copy to the host holds training up.

The identity says what a run is (identity.py). A folder that holds another run's checkpoints is an
error, never overwritten. In a run of several processes each of them calls every method.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import jax
import orbax.checkpoint as ocp

from pemt_jax.checkpoints import folder as disk
from pemt_jax.checkpoints.agreement import decide
from pemt_jax.checkpoints.identity import difference
from pemt_jax.checkpoints.manifest import (
    ITEM,
    ManifestSave,
    flatten_state,
    read_manifest,
    record_leaves,
    replace_manifest,
)
from pemt_jax.checkpoints.newest import first_complete
from pemt_jax.checkpoints.restore import nested, restore
from pemt_jax.checkpoints.score import rank, score_of
from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.parallel import processes

_policies = ocp.checkpoint_managers


class Checkpoints:
    """The checkpoints of one run in one folder.

    Args:
        folder: of this run only; created when missing.
        identity: what makes this run this run, JSON values; compared with that of the
            checkpoints in the folder. None compares nothing.
        best_metric: name of the metric by which the best checkpoint is kept, or None.
        higher_is_better: whether a larger metric is better.
        alone: whether no other run of this process saves meanwhile. Where one does, several
            processes finish each save at once: orbax's barriers have the same names in all runs.

    Raises:
        UsageError: the folder holds the checkpoints of a run with another identity, or something
            that is not a checkpoint under the name of one.
        PemtError: the folder or a manifest cannot be read.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, object] | None,
        best_metric: str | None = None,
        higher_is_better: bool = True,
        alone: bool = True,
    ):
        self.folder = storage.path(folder).absolute()
        disk.check_supported(self.folder)
        self._at_once = not alone and jax.process_count() > 1
        # Through JSON and back, so that tuples compare equal to what a manifest holds.
        self.identity = None if identity is None else json.loads(json.dumps(dict(identity)))
        self.best_metric = best_metric
        self.higher_is_better = higher_is_better
        # Orbax reports each save at INFO, harmless facts as warnings, and a full disk in hundreds
        # of lines of several threads; users see our sentences.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file, expected a folder for checkpoints.")
        self._open()
        order = cast(Callable[..., float], rank)  # orbax only compares: tuples will do
        best = _policies.BestN(get_metric_fn=order, n=1, keep_checkpoints_without_metrics=False)
        policy = _policies.AnyPreservationPolicy([_policies.LatestN(2), best])
        options = ocp.CheckpointManagerOptions(
            best_fn=order,
            preservation_policy=policy,
            save_interval_steps=1,
            create=True,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(
            self.folder, item_names=("state", ITEM), options=options
        )

    def steps(self) -> list[int]:
        """Return the steps of the finished checkpoints, ascending."""
        self.wait()
        return sorted(self._finished())

    def latest_step(self) -> int | None:
        """Return the step of the newest finished checkpoint, or None."""
        return max(self.steps(), default=None)

    def set_aside(self, step: int, reason: str) -> None:
        """Rename a damaged checkpoint to STEP.damaged and warn with `reason`."""
        if processes.is_first():
            disk.set_aside(self.folder / str(step), reason)
        processes.barrier()
        self._manager.reload()

    def best_step(self) -> int | None:
        """Return the step with the best metric (of equal ones the earliest), or None."""
        self.wait()
        ranks = {step: rank(manifest["score"]) for step, manifest in self._finished().items()}
        ranked = [step for step, rank in ranks.items() if rank[0] > -math.inf]
        return max(ranked, key=lambda step: ranks[step], default=None)

    def manifest(self, step: int) -> dict:
        """Return the manifest of a finished checkpoint.

        Raises:
            PemtError: there is none, or it cannot be read.
        """
        self.wait()
        manifest = read_manifest(self.folder / str(step))
        if manifest is None:
            raise PemtError(f"{self.folder} has no finished checkpoint of step {step}.")
        return manifest

    def save(
        self, step: int, state, metrics: Mapping[str, float] | None = None, **details: object
    ) -> None:
        """Save `state` (a tree of arrays) as step `step`; return once it is copied to the host.

        The files are hashed and written in the background. `metrics` are validation metrics;
        `details` are JSON values that `manifest` returns. Saving a step again only adds metrics and
        details: its arrays are what they were.

        Raises:
            UsageError: `metrics` has no `best_metric`.
            PemtError: this checkpoint, or the one before, could not be written.
        """
        facts = {
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "score": score_of(step, metrics, self.best_metric, self.higher_is_better),
            **details,
        }
        self.wait()
        if step in self._manager.all_steps():
            if metrics:
                self._amend(step, facts)
            return
        # Orbax would create it again, with half a run in it. An empty one is none in a bucket.
        if self._manager.all_steps() or not storage.is_remote(self.folder):
            self._check_there()
        flat = flatten_state(state)
        manifest = {"step": int(step), "identity": self.identity, "leaves": {}, **facts}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(nested(flat)),
            **{ITEM: ManifestSave(manifest, record_leaves(flat))},
        )
        try:
            self._manager.save(step, args=items, metrics=facts["score"], force=True)
        except Exception as error:  # orbax passes on whatever the file system raised
            raise self._unwritten(error) from error
        if self._at_once:
            self.wait()

    def restore(self, step: int, target):
        """Return the state of `step` in the structure, dtypes and shardings of `target`.

        `target` is a tree of arrays, or of jax.ShapeDtypeStruct with shardings; its mesh may be
        another than the one that saved.

        Raises:
            PemtError: no such checkpoint, other leaves or shapes, or files that cannot be read.
            DamagedCheckpoint: bytes that differ from the manifest.
        """
        return restore(self.folder / str(step), target, self.manifest(step)["leaves"])

    def restore_trainable(self, step: int, target: Mapping[str, jax.Array]) -> dict:
        """Return only the trained parameters of `step`, {path: array} like `target`."""
        leaves = self.manifest(step)["leaves"]
        leaves = {path: leaf for path, leaf in leaves.items() if path.startswith("trainable/")}
        found = restore(self.folder / str(step), {"trainable": dict(target)}, leaves)
        return found["trainable"]

    def restore_best(
        self, last_step: int, target: Mapping[str, jax.Array]
    ) -> tuple[int, dict, dict[str, float]]:
        """Return step, trained parameters and metrics of the best checkpoint.

        Without any evaluated checkpoint that is the one of `last_step`. A damaged checkpoint is set
        aside with a warning, and the next best is restored, finally the newest. `target` and the
        parameters are as of `restore_trainable`.

        Raises:
            PemtError: as of `restore`.
            DamagedCheckpoint: no checkpoint is complete; nothing is set aside.
        """
        self.wait()
        ranks = {step: rank(manifest["score"]) for step, manifest in self._finished().items()}
        ranks.setdefault(last_step, rank(None))
        # By metric; those without one come last, the run's last step before the others.
        order = sorted(ranks, key=lambda step: (ranks[step], step == last_step, step))
        found = first_complete(
            self,
            reversed(order),
            lambda step: self.restore_trainable(step, target),
            "The next best checkpoint is used, step {}.",
        )
        assert found is not None  # there is last_step
        step, values = found
        return step, values, self.manifest(step)["metrics"] or {}

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
            PemtError: it could not be written (full disk, permissions).
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # orbax passes on whatever the file system raised
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Wait for the last save and release orbax's threads."""
        try:
            self.wait()
        finally:
            try:
                self._manager.close()
            except Exception as error:  # what wait() has reported already, or of another thread
                raise self._unwritten(error) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open(self) -> None:
        """Refuse another run's folder, and set aside what is not a finished checkpoint."""
        found, failure = {}, None
        try:
            found = disk.manifests(self.folder)
        except PemtError as error:
            failure = error
        damaged = decide(failure, [step for step, manifest in found.items() if manifest is None])
        for manifest in found.values():
            if manifest is None or self.identity is None:
                continue
            if other := difference(manifest["identity"] or {}, self.identity):
                raise UsageError(
                    f"{self.folder} holds the checkpoints of another run, whose {other} or "
                    "another MODEL_DIR for this run."
                )
        if processes.is_first():
            disk.mend(self.folder, found, damaged)
        processes.barrier()

    def _finished(self) -> dict[int, dict]:
        """Return {step: manifest} of the finished checkpoints on disk, ascending."""
        found = disk.manifests(self.folder)
        return {step: manifest for step, manifest in found.items() if manifest is not None}

    def _amend(self, step: int, facts: Mapping) -> None:
        if processes.is_first():
            folder = self.folder / str(step)
            # First the manifest, which decides; orbax's own copy of the score guides deletion.
            replace_manifest(folder, self.manifest(step) | dict(facts))
            disk.mend_score(folder, facts["score"])
        processes.barrier()
        self._manager.reload()

    def _check_there(self) -> None:
        try:
            there = self.folder.is_dir()
        except OSError as error:
            raise self._unwritten(error) from error
        if not there:
            raise PemtError(
                f"A checkpoint could not be written to {self.folder}: the folder is gone."
            )

    def _unwritten(self, error: Exception) -> PemtError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if storage.is_remote(self.folder) and isinstance(error, OSError):
            reason = storage.reason(error)  # without its number, which is ours
        return PemtError(f"A checkpoint could not be written to {self.folder}: {reason}.")
