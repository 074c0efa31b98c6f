#!/usr/bin/env bash
# Train on TPUs of a GKE cluster by xpk (pip install xpk):
#     launch/gke_xpk.sh --workload NAME --cluster CLUSTER --zone ZONE --type v5litepod-16 \
#         --image IMAGE --model_dir gs://BUCKET/runs/x -- ARGUMENTS
#
# ARGUMENTS are those of `python -m pemt_jax.train`. IMAGE is a base image with Python 3.11 or later;
# xpk lays this checkout over it, and each host installs it before it trains. MODEL_DIR and data are
# on gs://.
#
# When a host is preempted or lost, all processes end with a code that the workload restarts (42,
# 134, 137, 143; at most --restarts N times, default 100), and the run in MODEL_DIR goes on. A failure
# of the run itself (1) and wrong use (2) end the workload. --grace SECONDS is how long a host may
# take to save after SIGTERM (default 300; Spot nodes are taken away earlier).
#
#   --slices N           several slices
#   --spot               on Spot nodes
#   --env NAME=VALUE     a variable of the processes, repeatable
#   --priority PRIORITY  very-low, low, medium (the default), high or very-high
#   --project PROJECT    another than gcloud's own
#   --delete             end the workload
#   --dry-run            print the command instead of running it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 2
}

script="launch/$(basename "${BASH_SOURCE[0]}")"
workload="" cluster="" zone="" type="" image="" model_dir="" slices=1 restarts=100 priority=medium
grace=300 dry_run="" delete="" project=() more=() arguments=()
while (($#)); do
    case "$1" in
        -h | --help)
            sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$script"
            exit 0
            ;;
        --workload | --cluster | --zone | --type | --image | --model_dir | --slices | --restarts | --grace | --priority | --project | --env)
            [[ $# -ge 2 && -n "$2" ]] || fail "$1 has no value, expected $1 VALUE."
            case "$1" in
                --project) project=("--project=$2") ;;
                --env)
                    [[ "$2" == [A-Za-z_]*=* ]] || fail "Found --env '$2', expected --env NAME=VALUE."
                    more+=("--env=$2")
                    ;;
                --slices | --restarts | --grace)
                    [[ "$2" =~ ^[0-9]+$ ]] || fail "Found $1 '$2', expected a number."
                    declare "${1#--}=$2"
                    ;;
                *) declare "${1#--}=$2" ;;
            esac
            shift 2
            ;;
        --spot) more+=(--spot) && shift ;;
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
    "--termination-grace-period-seconds=$grace" ${more[@]+"${more[@]}"} \
    "--command=pip install -q '.[tpu,gs]' && exec $train"
