"""The launch scripts print the commands that they would run, and refuse wrong use in a sentence.

After a change of a script:  python tests/test_launch.py  writes tests/data/launch again.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "data" / "launch"
SCRIPTS = ("tpu_vm.sh", "gke_xpk.sh", "slurm.sbatch")
TPU = ["--name", "pemt", "--zone", "us-west4-a", "--dry-run"]
GKE = ["--workload", "cb", "--cluster", "tpus", "--zone", "us-west4-a", "--dry-run"]
RUN = [
    "--model_dir",
    "gs://bucket/runs/cb",
    "--",
    "--gin_file=runs/stage2.gin",
    "--gin.EXPERTS=('mnli','qnli')",
]
CASES = {
    "tpu_vm_create": ["tpu_vm.sh", "create", *TPU, "--type", "v5litepod-16", "--spot"],
    "tpu_vm_install": ["tpu_vm.sh", "install", *TPU, "--project", "other"],
    "tpu_vm_run": ["tpu_vm.sh", "run", *TPU, *RUN],
    "tpu_vm_tail": ["tpu_vm.sh", "tail", *TPU, "--worker", "3"],
    "tpu_vm_fetch": ["tpu_vm.sh", "fetch", *TPU, *RUN[:2], "--to", "runs/cb"],
    "tpu_vm_delete": ["tpu_vm.sh", "delete", *TPU],
    "gke_xpk_create": [
        "gke_xpk.sh",
        *GKE,
        "--type",
        "v5litepod-16",
        "--image",
        "python:3.12",
        *RUN,
    ],
    "gke_xpk_delete": ["gke_xpk.sh", *GKE, "--delete"],
    "slurm": ["slurm.sbatch", "--dry-run", "--model_dir", "/shared/runs/cb", *RUN[2:]],
}
WRONG = {
    "Found the command 'crate'": ["tpu_vm.sh", "crate"],
    "There is no --name": ["tpu_vm.sh", "create", "--zone", "z"],
    "No image is known for --type 'v9-8'": ["tpu_vm.sh", "create", *TPU, "--type", "v9-8"],
    "There is nothing to train": ["tpu_vm.sh", "run", *TPU, "--model_dir", "gs://b/x"],
    "--zone has no value": ["tpu_vm.sh", "tail", "--zone"],
    "There is no argument '--dry_run'": ["gke_xpk.sh", *GKE, "--dry_run"],
    "Found --model_dir 'runs/x'": [
        "gke_xpk.sh",
        *GKE,
        "--type",
        "v4-8",
        "--image",
        "i",
        "--model_dir",
        "runs/x",
    ],
    "There is no --model_dir": ["slurm.sbatch", "--", "--gin_file=x"],
}


def run(script, *arguments, **options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.run(
        ["bash", str(ROOT / "launch" / script), *arguments],
        text=True,
        capture_output=True,
        env=environment,
        cwd=ROOT,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize("name", CASES)
def test_dry_run_prints_every_command(name):
    done = run(*CASES[name])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (STORED / f"{name}.txt").read_text()


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_use_is_one_sentence_and_code_2(sentence):
    done = run(*WRONG[sentence])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_head_of_the_script(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "--dry-run" in done.stdout and "set -" not in done.stdout
    assert all(
        f"{command} " in done.stdout
        for command in (
            ("create", "install", "run", "tail", "fetch", "delete")
            if script == "tpu_vm.sh"
            else ("--model_dir",)
        )
    )


def test_scripts_pass_shellcheck():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("there is no shellcheck: pip install '.[test]'")
    scripts = [str(ROOT / "launch" / script) for script in (*SCRIPTS, "local_processes.sh")]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stdout


@pytest.fixture
def checkout(tmp_path):
    """A git repository with the script, and a gcloud that writes its arguments to a file."""
    for name in ("launch", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "launch" / "tpu_vm.sh", tmp_path / "launch")
    (tmp_path / "model.py").write_text("first\n")
    (tmp_path / "two words.py").write_text("first\n")
    (tmp_path / ".gitignore").write_text("bin/\ncalls\n")
    (tmp_path / "bin" / "gcloud").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
    (tmp_path / "bin" / "gcloud").chmod(0o755)
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def install(checkout, *arguments):
    return subprocess.run(
        ["bash", "launch/tpu_vm.sh", "install", "--name", "pemt", "--zone", "z", *arguments],
        text=True,
        capture_output=True,
        env=os.environ | {"PATH": f"{checkout}/bin:{os.environ['PATH']}"},
        cwd=checkout,
        timeout=60,
    )


def test_tpu_vm_install_names_the_edits_that_it_leaves_behind(checkout):
    (checkout / "model.py").write_text("second\n")
    (checkout / "two words.py").unlink()
    (checkout / "new.py").write_text("first\n")
    (checkout / "pemt_jax.tar.gz").write_text("of an installation that failed")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True
    ).stdout.strip()
    done = install(checkout)
    assert (done.returncode, done.stderr) == (
        0,
        f"warning: The commit {commit} is installed, without your edits of model.py, new.py, "
        "two words.py.\n",
    )
    scp, ssh = (checkout / "calls").read_text().splitlines()
    assert "scp pemt_jax.tar.gz pemt:" in scp and "tar xzf pemt_jax.tar.gz" in ssh


def test_tpu_vm_install_names_ten_of_many_edits(checkout):
    for number in range(13):
        (checkout / f"new_{number:02}.py").write_text("")
    done = install(checkout)
    assert done.returncode == 0 and done.stderr.endswith("new_08.py, new_09.py and 3 more.\n")


def test_tpu_vm_install_of_a_clean_checkout_says_nothing(checkout):
    done = install(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert len((checkout / "calls").read_text().splitlines()) == 2


def test_slurm_job_that_is_stopped_lets_its_processes_save_and_is_queued_again(tmp_path):
    """With an srun and an scontrol of our own: the first saves when it is told to stop."""
    for name, body in {
        "srun": f"trap 'echo saved >>{tmp_path}/log; exit 0' TERM\n"
        f'echo "$@" >{tmp_path}/log\nwhile :; do sleep 0.1; done',
        "scontrol": f'echo "$@" >>{tmp_path}/log',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(
        ["bash", str(ROOT / "launch" / "slurm.sbatch"), "--model_dir", "/shared/x", "--", "--a"],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    log, deadline = tmp_path / "log", time.time() + 30
    while not (log.exists() and log.read_text()) and time.time() < deadline:
        time.sleep(0.05)
    job.terminate()
    job.wait(30)
    lines = log.read_text().splitlines()
    assert lines[0].endswith("-m pemt_jax.train --a --gin.MODEL_DIR=/shared/x")
    assert lines[1:] == ["saved", "requeue 7"]


if __name__ == "__main__":
    for name, arguments in CASES.items():
        (STORED / f"{name}.txt").write_text(run(*arguments).stdout)
