"""Process-wide state: what a program of this package sets, and an import of it must not.

Importing a module of the package changes no environment, warning filter, hook or log level. A
program calls `startup` instead, before it imports anything that brings TensorFlow. All commands do
so through `command.run` or `exit_codes.exit_code_of`, and keep to one pattern:

    import sys

    from pemt_jax.cli import command  # at the top: only what brings neither TensorFlow nor SeqIO


    def train(...):
        from pemt_jax.runs import ...  # here: everything else
        ...


    if __name__ == "__main__":
        sys.exit(command.run(train))  # startup(), then what gin files import, then train

So a main can be imported as a library, and its --help answers without TensorFlow.

Why TensorFlow needs this much care: 2.21 logs to the file descriptor of stderr while it is
imported, and no environment variable stops it. stderr is therefore caught for the length of that
import and passed on without those messages. TensorFlow is also kept off the GPU, whose memory it
would take from JAX at its first operation.
"""

import contextlib
import functools
import importlib.abc
import importlib.util
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator

from absl import logging as absl_logging

from pemt_jax.common.errors import end_at_interrupt, no_such, say, terminal
from pemt_jax.common.storage import cache_folder

START_UP = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} "
    rb"|E\d{4} .*failed call to cuInit"
)
LOG_LEVELS = ("debug", "info", "warning", "error")


@functools.cache
def startup() -> None:
    """Make this process a program of the package; does nothing when called again."""
    end_at_interrupt()
    silence_libraries()
    _keep_compiled_steps()
    if importlib.util.find_spec("gcsfs"):
        # Before etils looks: one client for gs://, ours, orbax's and TFDS's; see common/buckets.
        os.environ.setdefault("EPATH_USE_TF", "false")


@functools.cache
def silence_libraries() -> None:
    """Keep notes and warnings of TensorFlow, JAX and orbax from the terminal, except errors."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets 1 when it is imported
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in ("jax", "orbax", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    _silence_abandoned_writes()
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietTensorFlow())


def show_log(level: str) -> None:
    """Print what the package logs at `level` or above, one line per record, to stderr.

    Raises:
        UsageError: there is no such level.
    """
    if level.lower() not in LOG_LEVELS:
        raise no_such("log level", level, LOG_LEVELS)
    logger = logging.getLogger("pemt_jax")
    logger.setLevel(level.upper())
    logger.propagate = False  # else a library that adds a handler to the root prints it again
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())


def announce_tensorflow(line: str) -> None:
    """Print `line` on stderr when TensorFlow begins to be imported, which takes long."""
    _QuietTensorFlow.announcement = line


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # In one piece, because several processes may share a terminal or a log.
        sys.stderr.write(f"{record.levelname.lower()}: {self.format(record)}\n")
        sys.stderr.flush()


def _keep_compiled_steps() -> None:
    """Compiling takes longer than many small runs: what one run compiled, the next reads."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    jax = sys.modules.get("jax")  # reads the variable while it is imported, and not again
    if jax is not None and jax.config.jax_compilation_cache_dir is None:
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
        jax.config.update("jax_compilation_cache_dir", folder)


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
    announcement: str | None = None

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                if self.announcement:
                    say(self.announcement)
                with _caught_start_up():
                    execute(module)
                    module.config.set_visible_devices([], "GPU")

            spec.loader.exec_module = exec_module
        return spec


def _silence_abandoned_writes() -> None:
    """Silence the tracebacks that follow a failed save and add nothing to its error.

    TensorStore's threads then call an event loop that is closed, and Python prints a traceback for
    each. Every other complaint is printed as before.
    """

    def only_others(hook, exception):
        def say(*args):
            if str(exception(*args)) != "Event loop is closed":
                hook(*args)

        return say

    sys.unraisablehook = only_others(sys.unraisablehook, lambda found: found.exc_value)
    sys.excepthook = only_others(sys.excepthook, lambda kind, error, where: error)


@contextlib.contextmanager
def _caught_start_up() -> Iterator[None]:
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(caught.fileno(), 2)
        terminal["stderr"] = stderr.fileno()
        try:
            yield
        finally:
            terminal["stderr"] = 2
            sys.stderr.flush()
            os.dup2(stderr.fileno(), 2)
            caught.seek(0)
            stderr.writelines(line for line in caught if not START_UP.match(line))
