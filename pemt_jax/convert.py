"""Convert a pretrained T5 between the formats of Hugging Face and T5X.

    python -m pemt_jax.convert --from PATH --to PATH --format hf|t5x [--dtype float32|bfloat16]

Arrays pass through memory one by one. The result appears complete, and replaces nothing that this
command did not write. The exit code is 0, 1 when a file is damaged or cannot be converted, 2 for
wrong use.
"""

import sys
from collections.abc import Sequence

from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.parser import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says; return the exit code."""
    return exit_code_of(lambda: _convert(argv))


def _convert(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    from pemt_jax.interop.convert import convert

    convert(arguments.source, arguments.target, arguments.target_format, arguments.dtype)
    print(f"{arguments.target}: {arguments.target_format}, from {arguments.source}")


def _parser() -> Parser:
    parser = Parser(prog="python -m pemt_jax.convert", description=__doc__)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="PATH",
        help="a Hugging Face folder or OWNER/NAME[@REVISION] on its hub, a T5X checkpoint_N or a "
        "folder of them",
    )
    parser.add_argument(
        "--to",
        dest="target",
        required=True,
        metavar="PATH",
        help="a new folder, or one that this command wrote, to replace",
    )
    parser.add_argument(
        "--format", dest="target_format", required=True, metavar="hf|t5x", help="of the result"
    )
    parser.add_argument(
        "--dtype", metavar="float32|bfloat16", help="of the stored numbers (default: unchanged)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
