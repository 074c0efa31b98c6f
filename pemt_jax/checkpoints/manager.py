"""Checkpoints of a run: what is trained, and nothing else.

A checkpoint is one orbax step folder with two items, renamed into place together:

    state     every leaf of the train state under its path: step, trainable/..., opt_state/...
    manifest  JSON: sha256, shape and dtype of every leaf, the run's identity, and what the run
              needs beside arrays (data position, seed, versions, metrics, evaluations so far)

Because the manifest is inside the rename there is no moment with a checkpoint and no manifest; a
folder without a whole one is damaged and is set aside. Restoring checks every leaf against the
manifest. The two latest checkpoints are kept, so that there is one before a damaged one, and the
best one by validation metric; of equal ones the earlier is the best. Saving is asynchronous: only
the copy to the host holds training up.

The identity says what a run is (names and sha256 of base and experts, method, task, ...). A folder
that holds another run's checkpoints is an error, never overwritten.
"""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from pemt_jax.checkpoints.identity import difference
from pemt_jax.checkpoints.manifest import (
    ITEM,
    ManifestSave,
    flatten_state,
    read_manifest,
    record_leaves,
    replace_manifest,
)
from pemt_jax.checkpoints.newest import set_aside
from pemt_jax.checkpoints.restore import nested, restore
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.storage import replacing
from pemt_jax.parallel import processes

_policies = ocp.checkpoint_managers
_ENTRIES = {"state", ITEM, "metrics", "_CHECKPOINT_METADATA", "commit_success.txt"}


class Checkpoints:
    """The checkpoints of one run in one folder.

    Args:
        folder: of this run only; created when missing.
        identity: what makes this run this run, JSON values; compared with what the folder holds.
            None compares nothing.
        best_metric: name of the metric by which the best checkpoint is kept, or None.
        higher_is_better: whether a larger metric is better.
        alone: whether no other run of this process saves meanwhile. Where one does, several
            processes finish each saving at once: orbax's barriers have one name in all runs.

    Raises:
        UsageError: the folder holds the checkpoints of a run with another identity, or something
            that is no checkpoint under the name of one.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, object] | None,
        best_metric: str | None = None,
        higher_is_better: bool = True,
        alone: bool = True,
    ):
        self.folder = Path(folder).absolute()
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
        self._check_identity()
        if jax.process_index() == 0:
            self._mend()
        processes.barrier()
        best = _policies.BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
        policy = _policies.AnyPreservationPolicy([_policies.LatestN(2), best])
        options = ocp.CheckpointManagerOptions(
            best_fn=_rank,
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
        """Take a damaged checkpoint out of the way; `reason` is told. Every process calls this."""
        if jax.process_index() == 0:
            set_aside(self.folder / str(step), reason)
        processes.barrier()
        self._manager.reload()

    def best_step(self) -> int | None:
        """Return the step with the best metric (of equal ones the earliest), or None."""
        self.wait()
        ranks = {step: _rank(manifest["score"]) for step, manifest in self._finished().items()}
        ranked = [step for step, rank in ranks.items() if rank[0] > -math.inf]
        return max(ranked, key=ranks.get, default=None)

    def manifest(self, step: int) -> dict:
        """Return the manifest of a finished checkpoint; PemtError when there is none."""
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
            "score": self._score(step, metrics),
            **details,
        }
        self.wait()
        if step in self._manager.all_steps():
            if metrics:
                self._amend(step, facts)
            return
        if not self.folder.is_dir():  # orbax would make it anew, and half a run in it
            raise PemtError(
                f"A checkpoint could not be written to {self.folder}: the folder is gone."
            )
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
            PemtError: no such checkpoint, another set of leaves or other shapes.
            DamagedCheckpoint: damaged bytes.
        """
        return restore(self._manager, step, target, self.manifest(step)["leaves"])

    def restore_trainable(self, step: int, target: Mapping[str, jax.Array]) -> dict:
        """Return only the trained parameters of `step`, {path: array} like `target`."""
        leaves = self.manifest(step)["leaves"]
        leaves = {path: leaf for path, leaf in leaves.items() if path.startswith("trainable/")}
        return restore(self._manager, step, {"trainable": dict(target)}, leaves)["trainable"]

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

    def _finished(self) -> dict[int, dict]:
        """Return {step: manifest} of the finished checkpoints on disk."""
        names = [path.name for path in self.folder.glob("*") if path.name.isdigit()]
        manifests = {int(name): read_manifest(self.folder / name) for name in names}
        return {step: manifests[step] for step in sorted(manifests) if manifests[step]}

    def _check_identity(self) -> None:
        if self.identity is None:
            return
        for manifest in self._finished().values():
            if other := difference(manifest["identity"], self.identity):
                raise UsageError(
                    f"{self.folder} holds the checkpoints of another run, whose {other} or "
                    "another MODEL_DIR for this run."
                )

    def _mend(self) -> None:
        """Leave orbax, which counts every numbered folder, only checkpoints that it can read."""
        newest = max(self._finished(), default=-1)
        for path in sorted(self.folder.glob("*")):
            if not (path.is_dir() and path.name.isdigit()):
                continue
            manifest = read_manifest(path)
            if manifest is not None:
                self._mend_score(path, manifest["score"])
            elif not {entry.name for entry in path.iterdir()} <= _ENTRIES:
                raise UsageError(f"{path} is no checkpoint, expected this run's folder only.")
            elif int(path.name) < newest and not (path / ITEM / "metadata").exists():
                shutil.rmtree(path)  # a kill has left a deletion half done
            else:
                set_aside(path, f"Checkpoint {path} is damaged: it has no whole manifest")

    def _mend_score(self, checkpoint: Path, score: Mapping) -> None:
        """Make orbax's copy of a score the manifest's: a crash came between the two, or damage."""
        file = checkpoint / "metrics" / "metrics"
        with contextlib.suppress(OSError, ValueError):
            if json.loads(file.read_text(encoding="utf-8")) == score:
                return
        with replacing(file) as partial:
            partial.write_text(json.dumps(score), encoding="utf-8")

    def _score(self, step: int, metrics: Mapping[str, float] | None) -> dict:
        """Return what ranks a checkpoint: {} without the metric, else its value, higher better."""
        if not metrics or self.best_metric is None:
            return {}
        if self.best_metric not in metrics:
            raise UsageError(
                f"The evaluation has no metric {self.best_metric!r}, expected one of "
                f"{', '.join(sorted(metrics))}{nearest(self.best_metric, metrics)}."
            )
        value = float(metrics[self.best_metric])
        if math.isnan(value):
            return {}
        return {"value": value if self.higher_is_better else -value, "step": int(step)}

    def _amend(self, step: int, facts: Mapping) -> None:
        if jax.process_index() == 0:
            folder = self.folder / str(step)
            # First the manifest, which decides; orbax's own copy of the score guides deletion.
            replace_manifest(folder, self.manifest(step) | facts)
            self._mend_score(folder, facts["score"])
        processes.barrier()
        self._manager.reload()

    def _unwritten(self, error: Exception) -> PemtError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return PemtError(f"A checkpoint could not be written to {self.folder}: {reason}.")


def _rank(score: Mapping | None) -> tuple[float, int]:
    """Order of checkpoints, best last: by value, of equal ones the earlier last."""
    if not score:
        return (-math.inf, 0)
    return (score["value"], -score["step"])
