"""The launch scripts print what they would run, and refuse wrong use in a sentence.

What they do is in the walks beside this file: test_slurm.py, test_gke.py, test_tpu_vm.py.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("tpu_vm.sh", "gke_xpk.sh", "slurm.sbatch")
OTHERS = ("local_processes.sh", "environment.sh", "test.sh", "demo.sh")
TPU = ["--name", "pemt", "--zone", "us-west4-a", "--dry-run"]
GKE = ["--workload", "cb", "--cluster", "tpus", "--zone", "us-west4-a", "--dry-run"]
TYPE = ["--type", "v5litepod-16"]
TRAIN = ["--model_dir", "gs://bucket/cb", "--", "--gin.EXPERTS=('mnli','it s')"]
PRINTED = {  # the programs of the commands that are printed, and a part of the last one
    ("tpu_vm.sh", "create", *TPU, *TYPE, "--spot"): ("gcloud gcloud", "describe pemt"),
    ("tpu_vm.sh", "install", *TPU, "--project", "other"): ("git gcloud gcloud rm", "pemt_jax"),
    ("tpu_vm.sh", "run", *TPU, *TRAIN): ("gcloud", "MODEL_DIR=gs://bucket/cb"),
    ("tpu_vm.sh", "tail", *TPU, "--worker", "3"): ("gcloud", "--worker=3"),
    ("tpu_vm.sh", "fetch", *TPU, *TRAIN[:2], "--to", "cb"): ("mkdir gcloud", "gs://bucket/cb cb"),
    ("tpu_vm.sh", "fetch", *TPU, "--model_dir", "/a", "--to", "b"): ("gcloud", "pemt:/a b"),
    ("tpu_vm.sh", "delete", *TPU): ("gcloud", "--force --quiet"),
    ("tpu_vm.sh", "babysit", *TPU, *TYPE, *TRAIN): (
        "gcloud gcloud git gcloud gcloud rm gcloud",
        "MODEL_DIR=gs://bucket/cb",
    ),
    ("gke_xpk.sh", *GKE, *TYPE, "--image", "i", *TRAIN): ("xpk", "MODEL_DIR=gs://bucket/cb"),
    ("gke_xpk.sh", *GKE, "--delete"): ("xpk", "--workload=cb"),
    ("slurm.sbatch", "--dry-run", *TRAIN): ("srun", "MODEL_DIR=gs://bucket/cb"),
}
WRONG = {
    "Found the command 'crate'": ["tpu_vm.sh", "crate"],
    "There is no --name": ["tpu_vm.sh", "create", "--zone", "z"],
    "There is no --type": ["tpu_vm.sh", "babysit", *TPU, *TRAIN],
    "No image is known for --type 'v9-8'": ["tpu_vm.sh", "create", *TPU, "--type", "v9-8"],
    "There is nothing to train": ["tpu_vm.sh", "run", *TPU, "--model_dir", "gs://b/x"],
    "--zone has no value": ["tpu_vm.sh", "tail", "--zone"],
    "Found --poll 'often'": ["tpu_vm.sh", "babysit", *TPU, "--poll", "often"],
    "There is no argument '--dry_run'": ["gke_xpk.sh", *GKE, "--dry_run"],
    "Found --env 'A'": ["gke_xpk.sh", *GKE, "--env", "A"],
    "Found --grace '5m'": ["gke_xpk.sh", *GKE, "--grace", "5m"],
    "Found --model_dir 'x'": ["gke_xpk.sh", *GKE, *TYPE, "--image", "i", "--model_dir", "x"],
    "There is no --model_dir": ["slurm.sbatch", "--", "--gin_file=x"],
    "Found --restarts 'no'": ["slurm.sbatch", "--restarts", "no", *TRAIN],
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


@pytest.mark.parametrize("arguments", PRINTED, ids=lambda arguments: "_".join(arguments[:2]))
def test_dry_run_prints_every_command(arguments):
    done = run(*arguments)
    programs, part = PRINTED[arguments]
    assert (done.returncode, done.stderr) == (0, "")
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [command[0] for command in commands] == programs.split()
    last = next(command for command in reversed(commands) if command[0] != "rm")
    assert part in " ".join(last)


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
            ("create", "install", "run", "tail", "fetch", "delete", "babysit")
            if script == "tpu_vm.sh"
            else ("--model_dir",)
        )
    )


def test_scripts_pass_shellcheck():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("there is no shellcheck: pip install '.[test]'")
    scripts = [*(f"launch/{script}" for script in (*SCRIPTS, *OTHERS)), ".ci/run"]
    done = subprocess.run(  # together, since they source each other
        [shellcheck, *scripts], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
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
