# shellcheck shell=bash
# Source this from the root of the repository:  source launch/environment.sh [extra]
#
# Creates the virtual environment on first use, updates it when setup.py or the versions change, and
# sets `python` to its interpreter. Location: $PEMT_JAX_VENV, else .venv. Interpreter: $PYTHON, else
# the first of python3.11, 3.12, 3.13, python3 that is at least 3.11.
#
# The versions are those of tests/constraints.txt, with which every test has passed.
# PEMT_JAX_LATEST=1 takes the newest releases that setup.py allows instead.

venv="${PEMT_JAX_VENV:-.venv}"
extra="${1:-}"
constraints=tests/constraints.txt
versions=(--constraint "$constraints")
if [[ -n "${PEMT_JAX_LATEST:-}" || ! -f "$constraints" ]]; then
    constraints=/dev/null
    versions=(--upgrade --upgrade-strategy eager)
fi

pick_interpreter() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Found no Python of version 3.11 or later, expected one in PATH or PYTHON." >&2
    return 1
}

# pip install with the given arguments. On a terminal pip shows its own progress. Elsewhere the size
# of the environment and the last line of pip's log are printed every ten seconds, and the whole log
# when pip fails.
pip_install() {
    local command=("$python" -m pip install --disable-pip-version-check "$@")
    if [[ -t 2 ]]; then
        "${command[@]}" >&2
        return
    fi
    local log="$venv/install.log" code=0 start=$SECONDS watcher
    : >"$log"
    (
        while sleep 10 >/dev/null && kill -0 "$$"; do
            echo "  $((SECONDS - start)) s, $(du -sm "$venv" | cut -f 1) MB:" \
                "$(grep -v '^WARNING' "$log" | tail -n 1 | cut -c 1-80)"
        done
    ) >&2 2>/dev/null </dev/null &
    watcher=$!
    "${command[@]}" --progress-bar off >"$log" 2>&1 || code=$?
    kill "$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null || true
    ((code == 0)) || cat "$log" >&2
    return "$code"
}

if [[ ! -x "$venv/bin/pip" ]]; then  # pip comes last: an interrupted creation is repeated
    interpreter="$(pick_interpreter)"
    echo "Creating the virtual environment $venv with $("$interpreter" --version)." >&2
    "$interpreter" -m venv "$venv"
fi
python="$(cd "$venv/bin" && pwd)/python"

# An editable installation points to this folder, so it is repeated after a move.
stamp="$venv/.installed-${extra:-base}"
state="$("$python" -c 'import hashlib, os, sys
files = b"".join(open(path, "rb").read() for path in sys.argv[1:])
print(hashlib.sha256(files).hexdigest(), sys.version_info[:2], os.getcwd())' setup.py "$constraints")"
if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$state" ]]; then
    echo "Installing pemt_jax and its dependencies into $venv (minutes the first time)." >&2
    # Older pips that find `wheel` here would make a link that lacks the mapped folders; newer ones
    # have no such choice and ignore the variable.
    PIP_USE_PEP517=1 pip_install "${versions[@]}" --editable ".${extra:+[$extra]}" || return
    echo "$state" >"$stamp"
fi

# XLA allocates a step's memory anew each time. In huge pages that is a 500th of the page faults, and
# a CPU step takes a seventh less time (T5-small, tests/benchmarks/RESULTS.md). Elsewhere than under
# glibc on Linux the variable has no effect.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
