#!/usr/bin/env bash
# Adapt to a task with 32 examples per label by experts on four others, and compare:
#     ./launch/demo.sh              about three minutes on 2 cores, after installation
#     ./launch/demo.sh --all        all experts trained anew, about eight minutes
#     ./launch/demo.sh --study      about an hour: 8 and 32 examples, 5 seeds, more baselines
#
# Makes its own virtual environment on first use (see launch/environment.sh). Everything is written
# to runs/demo, runs/demo_all or runs/study; what has ended there is not made again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh ""  # without an argument it would see this script's

script=launch/demo.py
if [[ "${1:-}" == --study ]]; then
    script=launch/study.py
    shift
fi
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
echo "Starting $script with $("$python" --version): importing JAX."
exec "$python" "$script" "$@"
