#!/usr/bin/env bash
# Adapt to a task with 32 examples per label by experts on four others, and compare:
#     ./launch/demo.sh              about three minutes on 2 cores, after installation
#     ./launch/demo.sh --all        all experts trained anew, about eight minutes
#     ./launch/demo.sh --study      hours: configs/tables/study.gin, which says what is compared
#
# Makes its own virtual environment on first use (see launch/environment.sh). Everything is written
# to runs/demo, runs/demo_all or runs/study; what has ended there is not made again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh ""  # without an argument it would see this script's

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
if [[ "${1:-}" == --study ]]; then
    "$python" -P -m pemt_jax.sweep --gin_file=tables/study.gin --gin.FOLDER=runs/study "${@:2}"
    [[ " $* " != *DRY_RUN=True* ]] || exit 0
    "$python" -P -m pemt_jax.report runs/study --to runs/study/study.html --markdown runs/study/study.md
    exec "$python" launch/bag_of_words.py
fi
echo "Starting launch/demo.py with $("$python" --version): importing JAX."
exec "$python" launch/demo.py "$@"
