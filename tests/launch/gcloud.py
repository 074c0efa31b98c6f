"""A stand-in for gcloud: the TPU commands that launch/tpu_vm.sh gives, with a memory.

Real are the commands on the workers, their files, and signals. Simulated are the slices: a folder
$GCLOUD_STATE/ZONE/NAME each, with a HOME per worker, whose processes run on this machine with
nothing of the caller's environment but $GCLOUD_STATE/environment.json. A request waits in its
queue for two looks (`describe`) and is then ACTIVE. Like the real one it refuses unknown flags,
unknown zones and types, what is missing, and what exists already. `preempt` does what Google does.

A worker has a `python3.11` and, in the environments that it creates, a `pip`, which are not what
they seem: the environment is the interpreter of the tests with its packages, and `pip install
./pemt_jax[...]` copies the package from that folder in front of them. $GCLOUD_PYTHON among the
workers' variables names another interpreter.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ZONES = {"us-west4-a": ("v5litepod-8", "v5litepod-16"), "us-central2-b": ("v4-8", "v4-16")}
WORKERS = 2
STATES = ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")

PYTHON = """#!/bin/sh
# python3.11 of a worker
test "$1 $2" = "-m venv" || {{ echo "python3.11: found $*, expected -m venv" >&2; exit 2; }}
mkdir -p "$3/bin" "$3/site"
cat >"$3/bin/python" <<'END'
#!/bin/sh
PYTHONPATH="$HOME/venv/site:$PYTHONPATH" exec "${{GCLOUD_PYTHON:-{python}}}" -P "$@"
END
cat >"$3/bin/pip" <<'END'
#!/bin/sh
# pip install -q ./FOLDER[EXTRAS]
folder="${{3%%\\[*}}"
test "$1 $2" = "install -q" -a -f "$folder/setup.py" || {{ echo "ERROR: $*" >&2; exit 1; }}
site="$HOME/venv/site/pemt_jax"
rm -rf "$site" && cp -r "$folder/pemt_jax" "$site" &&
    cp -r "$folder/tasks" "$folder/configs" "$site"
END
chmod +x "$3/bin/python" "$3/bin/pip"
"""


class Refusal(Exception):
    """What gcloud prints after ERROR: (command)."""


class Slice:
    """A queued resource and its node."""

    def __init__(self, root: Path, zone: str, name: str):
        self.root, self.folder = root, root / zone / name
        self.name = name

    def exists(self) -> bool:
        return (self.folder / "request.json").exists()

    def read(self) -> dict:
        if not self.exists():
            raise Refusal(f"NOT_FOUND: Resource '{self.name}' was not found")
        return json.loads((self.folder / "request.json").read_text())

    def write(self, **request) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "request.json").write_text(json.dumps(request))

    def home(self, worker: int) -> Path:
        return self.folder / f"worker{worker}"

    def advance(self) -> str:
        """One look at a request brings it one state further."""
        request = self.read()
        if request["state"] in STATES[:-1]:
            request["state"] = STATES[STATES.index(request["state"]) + 1]
            if request["state"] == "ACTIVE":
                request["port"] = free_port()
                for worker in range(WORKERS):
                    python = self.home(worker) / "image" / "python3.11"
                    python.parent.mkdir(parents=True)
                    python.write_text(PYTHON.format(python=sys.executable))
                    python.chmod(0o755)
            self.write(**request)
        return request["state"]

    def workers(self, which: str) -> list[int]:
        if self.read()["state"] != "ACTIVE":
            raise Refusal("FAILED_PRECONDITION: The TPU node is not in the READY state.")
        chosen = range(WORKERS) if which == "all" else [int(which)]
        if not set(chosen) <= set(range(WORKERS)):
            raise Refusal(f"INVALID_ARGUMENT: There is no worker {which}.")
        return list(chosen)

    def call(self, worker: int, command: str) -> subprocess.Popen:
        home = self.home(worker)
        variables = self.root / "environment.json"
        environment = json.loads(variables.read_text()) if variables.exists() else {}
        environment |= {
            "HOME": str(home),
            "USER": "me",
            "PATH": f"{home}/image:/usr/bin:/bin",
            # On a TPU JAX finds the workers by itself.
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{self.read()['port']}",
            "JAX_NUM_PROCESSES": str(WORKERS),
            "JAX_PROCESS_ID": str(worker),
        }
        return subprocess.Popen(
            ["bash", "-c", command],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def processes(self, worker: int) -> list[int]:
        """Those of a worker, found by their HOME."""
        wanted, found = f"HOME={self.home(worker)}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                pass
        return found

    def end(self) -> None:
        """Take the machines away: no process and no file of theirs is left."""
        for worker in range(WORKERS):
            while found := self.processes(worker):
                for process in found:
                    try:
                        os.kill(process, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                time.sleep(0.05)
            shutil.rmtree(self.home(worker), ignore_errors=True)


def preempt(root: Path, zone: str, name: str) -> None:
    """What happens to a Spot slice: its machines go, its request stays as SUSPENDED."""
    found = Slice(root, zone, name)
    request = found.read()
    assert request["spot"], "only Spot slices are preempted"
    found.write(**request | {"state": "SUSPENDED"})
    found.end()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


def create(found: Slice, flags) -> None:
    if found.exists():
        raise Refusal(f"ALREADY_EXISTS: Resource '{found.name}' already exists")
    if flags.accelerator_type not in ZONES[flags.zone]:
        raise Refusal(f"INVALID_ARGUMENT: There is no {flags.accelerator_type} in {flags.zone}")
    found.write(
        state=STATES[0],
        node=flags.node_id,
        type=flags.accelerator_type,
        runtime=flags.runtime_version,
        spot=flags.spot,
    )


def describe(found: Slice, flags) -> None:
    state = found.advance()
    if flags.format != "value(state.state)":
        raise Refusal(f"The stand-in knows no format {flags.format!r}")
    print(state)


def delete(found: Slice, flags) -> None:
    if found.read()["state"] == "ACTIVE" and not flags.force:
        raise Refusal("FAILED_PRECONDITION: The queued resource has a node; use --force")
    if not flags.quiet:
        raise Refusal("cannot prompt: this is no terminal; use --quiet")
    found.end()
    shutil.rmtree(found.folder)


def ssh(found: Slice, flags) -> int:
    calls = [found.call(worker, flags.command) for worker in found.workers(flags.worker)]

    def stop(number, _):
        for call in calls:
            os.killpg(call.pid, signal.SIGKILL)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return max(call.wait() for call in calls)


def scp(found: Slice, flags) -> None:
    for worker in found.workers(flags.worker):
        home = found.home(worker)
        source, target = (
            home / end.split(":", 1)[1] if end.startswith(f"{found.name}:") else Path(end)
            for end in (flags.source, flags.target)
        )
        if source.is_dir() and flags.recurse:
            shutil.copytree(source, target)
        elif source.is_file():
            shutil.copy(source, target)
        else:
            raise Refusal(f"scp: {source}: No such file, or a directory without --recurse")


def rsync(flags) -> None:
    from gcsfs.core import GCSFileSystem  # only here: the other commands answer in a moment

    files, source = GCSFileSystem(), flags.source.removeprefix("gs://")
    if not files.exists(source):
        raise Refusal(f"Did not find existing container at: {flags.source}")
    for path in files.find(source):
        target = Path(flags.target) / path[len(source) :].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(path, str(target))


def parser() -> argparse.ArgumentParser:
    """The flags of the real commands that the stand-in obeys; every other is refused."""
    top = argparse.ArgumentParser(prog="gcloud", allow_abbrev=False)
    groups = top.add_subparsers(required=True)

    def command(group, name, action, *positional, **flags):
        made = group.add_parser(name, allow_abbrev=False)
        for argument in positional:
            made.add_argument(argument)
        for flag, options in flags.items():
            made.add_argument(f"--{flag.replace('_', '-')}", **options)
        made.set_defaults(action=action)

    needed, switch = {"required": True}, {"action": "store_true"}
    where = {"zone": {"required": True, "choices": list(ZONES)}, "project": {}}
    compute = groups.add_parser("compute").add_subparsers(required=True)
    tpus = compute.add_parser("tpus").add_subparsers(required=True)
    queued = tpus.add_parser("queued-resources").add_subparsers(required=True)
    node = tpus.add_parser("tpu-vm").add_subparsers(required=True)
    storage = groups.add_parser("storage").add_subparsers(required=True)
    command(
        queued,
        "create",
        create,
        "name",
        node_id=needed,
        accelerator_type=needed,
        runtime_version=needed,
        spot=switch,
        **where,
    )
    command(queued, "describe", describe, "name", format={}, **where)
    command(queued, "delete", delete, "name", force=switch, quiet=switch, **where)
    command(node, "ssh", ssh, "name", worker={"default": "0"}, command=needed, **where)
    command(node, "scp", scp, "source", "target", worker={"default": "0"}, recurse=switch, **where)
    command(storage, "rsync", rsync, "source", "target", recursive=switch)
    return top


def main() -> int:
    flags = parser().parse_args()
    try:
        if flags.action is rsync:
            return rsync(flags) or 0
        ends = (getattr(flags, part, "") for part in ("name", "source", "target"))
        name = next(end.split(":")[0] for end in ends if ":" in end or "name" in flags)
        return flags.action(Slice(Path(os.environ["GCLOUD_STATE"]), flags.zone, name), flags) or 0
    except Refusal as refusal:
        print(f"ERROR: (gcloud.{flags.action.__name__}) {refusal}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
