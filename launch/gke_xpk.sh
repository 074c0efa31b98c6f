#!/usr/bin/env bash
# Train on TPUs of a GKE cluster by xpk (pip install xpk):
#     launch/gke_xpk.sh --workload NAME --cluster CLUSTER --zone ZONE --type v5litepod-16 \
#         --image IMAGE --model_dir gs://BUCKET/runs/x -- ARGUMENTS
#
# ARGUMENTS are those of `python -m pemt_jax.train`. IMAGE is a base image with Python 3.11 or later;
# xpk lays this checkout over it, and each host installs it before it trains. After a preemption or
# a failure xpk starts the workload again (--restarts N, default 100), and the run in MODEL_DIR goes on.
# MODEL_DIR and data lie on gs://. --slices N for several slices, --project PROJECT for another than
# gcloud's own, --priority low|medium|high, --delete to end the workload; --dry-run prints the
# commands instead of running them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 2
}

script="launch/$(basename "${BASH_SOURCE[0]}")"
workload="" cluster="" zone="" type="" image="" model_dir="" slices=1 restarts=100 priority=medium
dry_run="" delete="" project=() arguments=()
while (($#)); do
    case "$1" in
        -h | --help)
            sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$script"
            exit 0
            ;;
        --workload | --cluster | --zone | --type | --image | --model_dir | --slices | --restarts | --priority | --project)
            [[ $# -ge 2 && -n "$2" ]] || fail "$1 has no value, expected $1 VALUE."
            case "$1" in
                --workload) workload="$2" ;;
                --cluster) cluster="$2" ;;
                --zone) zone="$2" ;;
                --type) type="$2" ;;
                --image) image="$2" ;;
                --model_dir) model_dir="$2" ;;
                --slices) slices="$2" ;;
                --restarts) restarts="$2" ;;
                --priority) priority="$2" ;;
                --project) project=("--project=$2") ;;
            esac
            shift 2
            ;;
        --dry-run) dry_run=1 && shift ;;
        --delete) delete=1 && shift ;;
        --) shift && arguments=("$@") && break ;;
        *) fail "There is no argument '$1', see $script --help." ;;
    esac
done

run() {
    if [[ -n "$dry_run" ]]; then
        printf '%q ' "$@" | sed 's/ $//'
        printf '\n'
    else
        "$@"
    fi
}

[[ -n "$workload" && -n "$cluster" && -n "$zone" ]] ||
    fail "There is no --workload, --cluster or --zone, expected all three."
where=("--workload=$workload" "--cluster=$cluster" "--zone=$zone" ${project[@]+"${project[@]}"})
if [[ -n "$delete" ]]; then
    run xpk workload delete "${where[@]}"
    exit
fi
[[ -n "$type" && -n "$image" ]] || fail "There is no --type or no --image, expected both."
[[ "$model_dir" == gs://* ]] || fail "Found --model_dir '$model_dir', expected gs://BUCKET/FOLDER."
((${#arguments[@]})) || fail "There is nothing to train, expected -- and the arguments of pemt_jax.train."

train="python3 -m pemt_jax.train"
for argument in "${arguments[@]}" "--gin.MODEL_DIR=$model_dir"; do
    train+=" $(printf '%q' "$argument")"
done
# exec: the signal of a preemption reaches Python, which saves.
run xpk workload create "${where[@]}" "--tpu-type=$type" "--num-slices=$slices" \
    "--base-docker-image=$image" --script-dir=. "--max-restarts=$restarts" "--priority=$priority" \
    "--command=pip install -q '.[tpu]' && exec $train"
