"""Silence at start: the messages that libraries print before a command has said a word.

And one that comes later, beside a sentence of ours: see `_silence_abandoned_writes`.

TensorFlow 2.21 logs to the file descriptor of stderr while it is imported, and no environment
variable stops it. `silence_libraries` therefore catches stderr for the length of that import and
passes on what is no such message. In the same breath TensorFlow is kept off the GPU, whose memory
it would take from JAX at its first operation; its complaint where there is none is silenced too.
"""

import contextlib
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

START_UP = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} "
    rb"|E\d{4} .*failed call to cuInit"
)


def silence_libraries() -> None:
    """Keep notes and warnings of TensorFlow, JAX and orbax from the terminal, errors excepted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in ("jax", "orbax", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    _silence_abandoned_writes()
    if "tensorflow" not in sys.modules and not any(map(_is_ours, sys.meta_path)):
        sys.meta_path.insert(0, _QuietTensorFlow())


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                with _caught_start_up():
                    execute(module)
                    module.config.set_visible_devices([], "GPU")

            spec.loader.exec_module = exec_module
        return spec


def _silence_abandoned_writes() -> None:
    """Keep from the terminal what a failed save had under way and dies of, saying nothing new.

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


def _is_ours(finder: object) -> bool:
    return isinstance(finder, _QuietTensorFlow)


@contextlib.contextmanager
def _caught_start_up() -> Iterator[None]:
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr.fileno(), 2)
            caught.seek(0)
            stderr.writelines(line for line in caught if not START_UP.match(line))
