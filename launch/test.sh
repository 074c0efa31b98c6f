#!/usr/bin/env bash
# Check structure, style and types, and run the tests:
#     ./launch/test.sh [--walks | --all] [arguments of pytest]
#
# Creates its own virtual environment on first use (see launch/environment.sh). --walks also walks
# whole roads from the first command to the last: the launchers (tests/launch; each says what it
# skips for want of a program), the READMEs' commands, a killed run, a sample of the fuzzer. --all
# runs these and the other slow tests. Two processes share the test files, since small models leave
# a second core idle; `-n 0` runs them in one. The last line is pytest's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test

selection=(-m "not slow")
arguments=()
for argument in "$@"; do
    case "$argument" in
        --all) selection=() ;;
        --walks) selection=(-m "not slow or walk") ;;
        *) arguments+=("$argument") ;;
    esac
done

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" tests/structure.py  # limits, order of the rooms (import-linter), types (pyright)
# The long form of expansion is for bash before 4.4, where an empty array counts as unset.
exec "$python" -m pytest -n 2 --dist loadfile ${selection[@]+"${selection[@]}"} ${arguments[@]+"${arguments[@]}"}
