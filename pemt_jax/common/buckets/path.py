"""A path in a bucket with the interface of pathlib.Path, over the fsspec file system of its scheme.

`etils.epath.Path` has most of it, and orbax and TFDS take such a path; the class here is one. What
it changes: it asks fsspec whether or not TensorFlow is installed (epath would take tf.io.gfile,
which raises errors of its own and knows one endpoint only), has the methods of pathlib that epath
lacks, and raises OSError with a number and a reason, whatever library the storage needs.

A bucket has no folders: one exists while an object has its name as a prefix. So `mkdir` does
nothing, and there is no renaming.
"""

import contextlib
import errno
import functools
import importlib.util
import logging
import os
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from etils.epath import gpath
from fsspec.config import conf

from pemt_jax.common.errors import UsageError, nearest

# scheme -> (the package that fsspec needs, our extra that brings it)
SCHEMES = {"gs": ("gcsfs", "gs"), "s3": ("s3fs", "s3"), "az": ("adlfs", None)}
NO_CREDENTIALS = ("RefreshError", "DefaultCredentialsError", "NoCredentialsError", "TransportError")
ANSWER_SECONDS = 12  # that a bucket has before a run; later requests are repeated for longer
F = TypeVar("F", bound=Callable)


def bucket_path(text: str) -> "BucketPath":
    """The path of a URL.

    Raises:
        UsageError: its scheme is unknown, or needs a package that is not installed.
    """
    scheme = text.partition("://")[0]
    if scheme not in SCHEMES:
        raise UsageError(
            f"{text} is on {scheme}://, expected a folder, or one of "
            f"{', '.join(f'{known}://' for known in SCHEMES)}{nearest(scheme, SCHEMES)}."
        )
    _prepare(scheme, text)
    if not re.match(r"\w+://[^/]+", text):
        raise UsageError(f"{text} names no bucket, expected {scheme}://BUCKET/PATH.")
    return BucketPath(text)


@functools.cache
def _prepare(scheme: str, text: str) -> None:
    package, extra = SCHEMES[scheme]
    if importlib.util.find_spec(package) is None:
        how = f'"pemt_jax[{extra}]"' if extra else package
        raise UsageError(
            f"{text} needs {package}, which is not installed, expected after pip install {how}."
        )
    os.environ.setdefault("EPATH_USE_TF", "false")  # for orbax: the same client as ours
    for protocol in ("gs", "gcs", "s3", "az", "abfs"):
        # Other processes write too, and what they wrote must be seen.
        conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    if scheme == "gs":
        from pemt_jax.common.buckets.google import GoogleStorage

        for name in ("gcsfs", "google.auth"):  # their errors come as exceptions too
            logging.getLogger(name).setLevel(logging.CRITICAL)
        for protocol in ("gs", "gcs"):
            fsspec.register_implementation(protocol, GoogleStorage, clobber=True)


def _translated(method: F) -> F:
    """Let a method of a path raise OSError with a number and a reason, and nothing else."""

    @functools.wraps(method)
    def translated(self, *args, **kwargs):
        with os_errors(self):
            return method(self, *args, **kwargs)

    return translated  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def os_errors(path: object) -> Iterator[None]:
    """Context in which what the libraries of a storage raise becomes an OSError about `path`."""
    try:
        yield
    except OSError as error:
        connecting = type(error).__module__.startswith("aiohttp")  # names no file
        if error.errno is not None and error.strerror and not connecting:
            raise
        number, reason = _meaning(error)
        raise OSError(number, reason, str(path)) from error  # the class follows from the number
    except (UsageError, ImportError, AssertionError, AttributeError, TypeError, KeyError):
        raise  # a mistake of ours
    except Exception as error:
        number, reason = _meaning(error)
        raise OSError(number, reason, str(path)) from error


def _meaning(error: Exception) -> tuple[int, str]:
    """(number, reason) of what a library raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or code in (404, "404"):
        return errno.ENOENT, os.strerror(errno.ENOENT)
    if isinstance(error, FileExistsError):
        return errno.EEXIST, os.strerror(errno.EEXIST)
    if isinstance(error, IsADirectoryError):
        return errno.EISDIR, os.strerror(errno.EISDIR)
    if isinstance(error, PermissionError) or text.startswith("Forbidden") or code in (403, "403"):
        return errno.EACCES, "the storage refuses it (403 Forbidden)"
    if code in (401, "401") or type(error).__name__ in NO_CREDENTIALS:
        return errno.EACCES, "the storage does not accept the credentials (401 Unauthorized)"
    return errno.EIO, f"the storage does not answer ({text[:200]})"


class BucketPath(gpath.PosixGPath):
    """A path in a bucket; see the module."""

    @property
    def fs(self) -> Any:
        """The file system; fsspec keeps one per scheme."""
        return fsspec.filesystem(str(self).partition("://")[0])

    def is_symlink(self) -> bool:
        return False

    def absolute(self) -> "BucketPath":
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def expanduser(self) -> "BucketPath":
        return self

    @_translated
    def exists(self) -> bool:
        return bool(self._info())

    @_translated
    def is_file(self) -> bool:
        return bool(self._info().get("type") == "file")

    @_translated
    def is_dir(self) -> bool:
        return bool(self._info().get("type") == "directory")

    def _info(self) -> dict:
        try:
            return self.fs.info(str(self))
        except FileNotFoundError:
            return {}

    @_translated
    def check_answers(self) -> None:
        """Raise OSError where Google's storage does not answer within ANSWER_SECONDS."""
        if str(self).startswith("gs://"):
            self.fs.answer(str(self).split("/")[2], ANSWER_SECONDS)

    @_translated
    def stat(self) -> Any:  # what users of pathlib and of epath ask for
        info = self.fs.info(str(self))
        changed: Any = info.get("mtime") or info.get("LastModified") or info.get("last_modified")
        seconds = changed.timestamp() if hasattr(changed, "timestamp") else 0.0
        return types.SimpleNamespace(
            st_size=info.get("size") or 0,
            length=info.get("size") or 0,
            st_mtime=seconds,
            st_mtime_ns=int(seconds * 1e6) * 1000,
            mtime=int(seconds),
            is_directory=info.get("type") == "directory",
            version=str(info.get("generation") or info.get("ETag") or seconds),
        )

    @_translated
    def iterdir(self) -> Iterator["BucketPath"]:
        found = self.fs.ls(str(self), detail=False)
        names = {str(name).rstrip("/").rpartition("/")[2] for name in found}
        return iter([self / name for name in sorted(names) if name and name != self.name])

    @_translated
    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """The objects below this path whose names match; folders are no objects."""
        root = self.fs._strip_protocol(str(self)).rstrip("/")
        names = [name[len(root) + 1 :] for name in self.fs.find(root)]
        found = [self / name for name in sorted(names) if name]
        return iter([path for path in found if path.match(pattern)])

    @_translated
    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """The paths below this one that match, folders too."""
        root = self.fs._strip_protocol(str(self)).rstrip("/")
        found = self.fs.glob(f"{root}/{pattern}")
        return iter([self / name[len(root) + 1 :] for name in sorted(map(str, found))])

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))

    @_translated
    def rmdir(self) -> None:
        if self.is_dir():
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(self))

    @_translated
    def rmtree(self, missing_ok: bool = False) -> None:
        try:
            self.fs.rm(str(self), recursive=True)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @_translated
    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.fs.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    @_translated
    def open(self, mode: str = "r", **options: Any) -> Any:
        if "b" not in mode:
            options = {"encoding": "utf-8"} | {k: v for k, v in options.items() if v is not None}
        return self.fs.open(str(self), mode, **options)

    @_translated
    def read_bytes(self) -> bytes:
        return self.fs.cat_file(str(self))

    @_translated
    def write_bytes(self, data: bytes) -> int:
        self.fs.pipe_file(str(self), bytes(data))
        return len(data)

    @_translated
    def create(self, data: bytes) -> bool:
        """Write a new object; False where there is one, also if it appears meanwhile."""
        try:
            self.fs.pipe_file(str(self), data, mode="create")
        except FileExistsError:
            return False
        return True

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    @_translated
    def download(self, file: Path) -> None:
        """Copy the object to a file on this disk."""
        self.fs.get_file(str(self), str(file))

    @_translated
    def upload(self, file: Path) -> None:
        """Put a file of this disk in place of the object; readers see the old or the new one."""
        self.fs.put_file(str(file), str(self))

    @_translated
    def copy_to(self, target: "BucketPath") -> None:
        """Copy the object inside the storage."""
        self.fs.cp_file(str(self), str(target))
