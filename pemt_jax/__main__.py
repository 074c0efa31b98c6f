"""`python -m pemt_jax COMMAND ...`: see pemt_jax/cli/console.py."""

import sys

from pemt_jax.cli.console import main

if __name__ == "__main__":
    sys.exit(main())
