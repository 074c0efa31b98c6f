#!/usr/bin/env bash
# Train experts on four source tasks and adapt to a fifth with 32 examples a label:
#     ./launch/demo.sh              about eight minutes on 2 cores, after installation
#     ./launch/demo.sh --study      about an hour: 8 and 32 examples, 5 seeds, more baselines
#
# Makes its own virtual environment on first use (see launch/environment.sh). Everything is written
# to runs/demo or runs/study; what has ended there is not made again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh ""  # without an argument it would see this script's

script=launch/demo.py
if [[ "${1:-}" == --study ]]; then
    script=launch/study.py
    shift
fi
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec "$python" "$script" "$@"
