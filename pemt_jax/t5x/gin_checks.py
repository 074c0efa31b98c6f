"""What T5X's commands are told of a wrong configuration or a failure of ours: one sentence.

T5X accepts a macro that nothing reads, finds a missing value with a traceback, and reports a
failure in the same way. `install` adds two things to its commands, each by the one means that they
leave for it:
- `check`, which gin calls when all files and flags are parsed, and nothing is built yet;
- `Sentence`, to which absl, whose programs they are, gives what they did not catch.

T5X imports this module because a gin file says so, and calls nothing of it before it configures
itself: to be imported has to be enough.
"""

import os
import sys
import traceback
from collections.abc import Mapping

from absl import app, flags

from pemt_jax.cli import gin_internals
from pemt_jax.cli.exit_codes import report
from pemt_jax.cli.gin_config import check_macros_are_read, check_no_cycles, check_nothing_is_missing
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.t5x.run_folder import leases

OURS = ("pemt_jax.t5x.model.new_model", "pemt_jax.t5x.model.trained_model")
COMPLETE = ("MODEL_DIR", "ARTEFACT_DIR", "CHECKPOINT_PATH")  # paths that orbax wants so


def check(_: Mapping) -> None:
    """Check the configuration of a command of T5X, where a model of ours is configured at all.

    Raises:
      UsageError: a macro that nothing reads, is its own value or has none; a model of T5X in the
        place of ours; a relative path; packed examples.
    """
    if not any(selector in OURS for selector, _ in gin_internals.bindings()):
        return
    check_no_cycles()
    values = gin_internals.macro_values()
    if (model := str(values.get("MODEL"))) != "@pemt/gin.singleton()":
        raise UsageError(
            f"MODEL is {model}, expected that of pemt_jax/configs/t5x: the gin file of a size of "
            "T5X comes before it."
        )
    check_nothing_is_missing()
    if flags.FLAGS.is_parsed() and "gin_bindings" in flags.FLAGS:
        check_macros(flags.FLAGS.gin_file or [], flags.FLAGS.gin_bindings)
    for name in COMPLETE:
        path = values.get(name)
        if isinstance(path, str) and "://" not in path and not os.path.isabs(path):
            raise UsageError(
                f"{name} is {path!r}, expected an absolute path: T5X's orbax needs one."
            )
    for selector, arguments in gin_internals.bindings():
        pack = arguments.get("pack")
        while (macro := gin_internals.macro_of(pack)) is not None:
            pack = values[macro]
        if pack and selector.endswith("utils.DatasetConfig"):
            raise UsageError(
                "Found DatasetConfig.pack = True, expected False: the examples of a packed batch "
                "would share one prompt and one gate."
            )


def check_macros(files: list[str], bindings: list[str]) -> None:
    """Raise UsageError for a macro, of these files or of the command line, that nothing reads."""
    given = {name for name, _, _ in (binding.partition(" ") for binding in bindings)}
    check_macros_are_read(gin_internals.macros_read_in(files, bindings), given)


class Sentence(app.ExceptionHandler):
    """Ends a program of absl with the sentence and the exit code of a failure of ours.

    PEMT_JAX_TRACEBACK=1 leaves the traceback.
    """

    def wants(self, exc: Exception) -> bool:
        """Whether it is one of ours, or the operating system's answer to a call of ours."""
        if os.environ.get("PEMT_JAX_TRACEBACK", "") not in ("", "0"):
            return False
        frames = traceback.walk_tb(gin_internals.original(exc).__traceback__)
        modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
        return isinstance(exc, PemtError) or (
            isinstance(exc, OSError) and any(name.startswith("pemt_jax.") for name in modules)
        )

    def handle(self, exc: Exception) -> None:
        """Print and end; absl would go on to print the traceback."""
        assert isinstance(exc, PemtError | OSError)
        code = report(exc)
        leases.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def install() -> None:
    """Add both to the program that runs."""
    gin_internals.check_before_others(check)
    app.install_exception_handler(Sentence())
