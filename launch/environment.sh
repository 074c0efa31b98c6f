# Source this from the root of the repository:  source launch/environment.sh [extra]
#
# Makes the virtual environment on first use and again when setup.py has changed, and sets `python`
# to its interpreter. Places: $PEMT_JAX_VENV, else .venv. Interpreter: $PYTHON, else the first of
# python3.11, 3.12, 3.13, python3 that is at least 3.11.

venv="${PEMT_JAX_VENV:-.venv}"
extra="${1:-}"

pick_interpreter() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: There is no Python of version 3.11 or later, expected one in PATH or PYTHON." >&2
    return 1
}

if [[ ! -x "$venv/bin/pip" ]]; then  # pip comes last: a half-made environment is made again
    interpreter="$(pick_interpreter)"
    echo "Making the virtual environment $venv with $("$interpreter" --version)." >&2
    "$interpreter" -m venv "$venv"
fi
python="$(cd "$venv/bin" && pwd)/python"

# An editable installation points to this folder, so a moved one is installed again.
stamp="$venv/.installed-${extra:-base}"
state="$("$python" -c 'import hashlib, os, sys
print(hashlib.sha256(open("setup.py", "rb").read()).hexdigest(), sys.version_info[:2], os.getcwd())')"
if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$state" ]]; then
    echo "Installing pemt_jax and what it needs into $venv (minutes the first time)." >&2
    # Older pips that find `wheel` here would make a link that lacks the mapped folders; newer ones
    # have no such choice and ignore the variable.
    PIP_USE_PEP517=1 "$python" -m pip install -qq --disable-pip-version-check --editable ".${extra:+[$extra]}" >&2
    echo "$state" >"$stamp"
fi

# XLA asks for a step's memory anew each time. In huge pages that is a 500th of the page faults, and
# a CPU step takes a seventh less (T5-small, tests/benchmarks/RESULTS.md). Elsewhere than under glibc
# on Linux the variable says nothing.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
