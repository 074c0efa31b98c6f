"""A Hugging Face hub on this machine: what huggingface_hub's real client asks when it downloads.

    with hub_server.served() as hub:
        hub.commit("me/t5", {"config.json": b"{}"})
        subprocess.run(command, env=os.environ | hub.environment(cache))

It knows repositories of models with commits and branches, their files by HEAD and GET, and the
errors of the real hub by code and X-Error-Code. `hub.downloads` lists what was downloaded.

Tests import the fixture `hub`, which also points the client of this process at it.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import importlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import pytest

from pemt_jax.library import hub_names

ABSENT = 'needs huggingface_hub: pip install "pemt_jax[hub]"'


@dataclasses.dataclass
class Hub:
    """The repositories, and what was asked for.

    Attributes:
      url: of the server.
      commits: of each repository, files by commit.
      branches: of each repository, commit by name.
      gated: repositories that nobody may read.
      downloads: (repository, file) of every GET of a file, in order.
      requests: their number, of any kind.
      seconds: how long a download takes.
    """

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = dataclasses.field(default_factory=dict)
    branches: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    gated: set[str] = dataclasses.field(default_factory=set)
    downloads: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    requests: int = 0
    seconds: float = 0

    def commit(self, repo: str, files: Mapping[str, bytes] | Path, branch: str = "main") -> str:
        """Add a commit of files, or of those in a folder, to a branch; return its hash."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        number = len(self.commits.setdefault(repo, {}))
        commit = hashlib.sha1(f"{repo} {number}".encode()).hexdigest()
        self.commits[repo][commit] = dict(files)
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def environment(self, cache: Path) -> dict[str, str]:
        """With which a process asks this hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for the path of a request."""
        parts = unquote(path.partition("?")[0]).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo, action, *rest = "/".join(parts[2:4]), *(parts[4:] or ["revision", "main"])
        else:
            repo, action, *rest = "/".join(parts[:2]), *parts[2:]
        if repo not in self.commits:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        commit = self.branches[repo].get(rest[0], rest[0])
        files = self.commits[repo].get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if action == "revision":
            siblings = [{"rfilename": name} for name in files]
            return 200, {}, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
        if action == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        if repo in self.gated:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        name = "/".join(rest[1:])
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        data = files[name]
        return 200, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit}, data


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def served() -> Iterator[Hub]:
    """A hub without repositories, on a loopback port."""
    hub, lock = Hub(), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            status, headers, body = hub.answer(self.path)
            with lock:
                hub.requests += 1
                if self.command == "GET" and status == 200 and "ETag" in headers:
                    owner, name, _, _, file = unquote(self.path).strip("/").split("/", 4)
                    hub.downloads.append((f"{owner}/{name}", file))
            if self.command == "GET" and "ETag" in headers:
                time.sleep(hub.seconds)
            self.send_response(status)
            for header, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(name="hub")
def hub_fixture(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub that this process asks, with the empty cache tmp_path/cache/hub."""
    constants = pytest.importorskip("huggingface_hub.constants", reason=ABSENT)
    with served() as hub:
        for name, value in hub.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        point_at(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        set_offline(monkeypatch, False)
        monkeypatch.setattr(hub_names, "_found", {})
        yield hub


def set_offline(monkeypatch, is_offline: bool) -> None:
    """Let the client of this process be as with HF_HUB_OFFLINE, or without."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
    http = importlib.import_module("huggingface_hub.utils._http")
    getattr(http, "reset_sessions", lambda: None)()  # earlier versions ask once per session


def point_at(monkeypatch, url: str) -> None:
    """Let the client of this process ask at `url`; it reads its environment at import only."""
    constants = pytest.importorskip("huggingface_hub.constants", reason=ABSENT)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    file_download = importlib.import_module("huggingface_hub.file_download")
    for module in (constants, file_download):  # the latter has a copy in earlier versions
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", url + template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)


def forget() -> None:
    """Be a process that has not looked for a name yet."""
    hub_names._found.clear()
