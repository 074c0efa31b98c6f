#!/usr/bin/env bash
# Check style and run the tests:  ./launch/test.sh [--all] [arguments of pytest]
#
# Makes its own virtual environment on first use (see launch/environment.sh). --all runs the slow
# tests too. Two processes share the files of tests, for small models leave a second core idle; `-n 0`
# runs them in one. The last line is pytest's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test

selection=(-m "not slow")
arguments=()
for argument in "$@"; do
    if [[ "$argument" == --all ]]; then
        selection=()
    else
        arguments+=("$argument")
    fi
done

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
"$python" -m ruff check .
# The long form of expansion is for bash before 4.4, where an empty array counts as unset.
exec "$python" -m pytest -n 2 --dist loadfile ${selection[@]+"${selection[@]}"} ${arguments[@]+"${arguments[@]}"}
