"""A shell in which the package's commands start in a moment.

Importing JAX, TensorFlow and SeqIO takes longer than a small run. A server imports them once and
forks a process per command: the `python` and `pemt-jax` on the PATH of this shell's bash pass
their arguments, folder, environment and open files to it, and end with its exit code.
"""

import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
call = socket.socket(socket.AF_UNIX)
call.connect({address!r})
request = json.dumps([{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(call, [len(request).to_bytes(8, "big")], [0, 1, 2])
call.sendall(request)
os._exit((call.recv(1) or b"\\x89")[0])  # no answer: it was killed
"""


class Shell:
    """A bash whose environment is `environment`; use it in a with statement."""

    def __init__(self, environment: Mapping[str, str]):
        self._folder = tempfile.TemporaryDirectory(prefix="shell-")  # a socket has a short path
        folder = Path(self._folder.name)
        address = str(folder / "socket")
        for program in ("python", "pemt-jax"):
            text = CLIENT.format(python=sys.executable, address=address, program=program)
            (folder / program).write_text(text)
            (folder / program).chmod(0o755)
        self._environment = {**environment, "PATH": f"{folder}:{os.environ['PATH']}"}
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__, address],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> "Shell":
        assert self._server.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._folder.cleanup()

    def run(self, script: str, folder: Path) -> subprocess.CompletedProcess:
        """Run a script in `folder` to its end or first failure; stderr is in its stdout."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )


def execute(program: str, arguments: Sequence[str]) -> int:
    """Do what the program does with these arguments; return its exit code."""
    try:
        if program == "pemt-jax":
            from pemt_jax.cli.console import main

            return main(arguments)
        if arguments[0] == "-m":
            module = arguments[1]
            sys.path.insert(0, os.getcwd())
            sys.argv = arguments[1:] + shlex.split(os.environ.get(f"MORE {module}", ""))
            sys.modules.pop(module, None)  # runpy warns of a module that is there already
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(arguments[0]).absolute().parent))
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(call: socket.socket) -> None:
    """Become the process that a client asks for, and send it the exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(call, 8, 3)
    request = call.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    program, arguments, folder, environment = json.loads(request)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = execute(program, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    call.sendall(bytes([code % 256]))


def main() -> None:
    import tiny_system  # noqa: F401  (brings the whole package)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    print("ready", flush=True)
    while server in select.select([server, sys.stdin], [], [])[0]:  # else the test has ended
        call, _ = server.accept()
        if not os.fork():
            server.close()
            try:
                answer(call)
            finally:
                os._exit(0)
        call.close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
