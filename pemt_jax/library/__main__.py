"""`python -m pemt_jax.library`: see pemt_jax/cli/library_command.py."""

import sys

from pemt_jax.cli.library_command import main

if __name__ == "__main__":
    sys.exit(main())
