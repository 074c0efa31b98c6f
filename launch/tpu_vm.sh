#!/usr/bin/env bash
# Train on a Cloud TPU: rent a slice, install this checkout on every worker, run, look, clean up.
#     launch/tpu_vm.sh create  --name NAME --zone ZONE --type v5litepod-16 [--spot] [--runtime VERSION]
#     launch/tpu_vm.sh install --name NAME --zone ZONE        (the commit checked out, no edits)
#     launch/tpu_vm.sh run     --name NAME --zone ZONE --model_dir gs://BUCKET/runs/x -- ARGUMENTS
#     launch/tpu_vm.sh tail    --name NAME --zone ZONE [--worker N]
#     launch/tpu_vm.sh fetch   --name NAME --zone ZONE --model_dir gs://BUCKET/runs/x --to FOLDER
#     launch/tpu_vm.sh delete  --name NAME --zone ZONE
#
# ARGUMENTS are those of `python -m pemt_jax.train`. A TPU VM that exists already needs no `create`.
# The same `run` again resumes the run in MODEL_DIR, after a preemption on a new slice.
# MODEL_DIR and data are on gs:// (or a disk that all workers share). --project PROJECT selects a
# project other than gcloud's own; --dry-run prints the commands instead of running them. gcloud's
# login is used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 2
}

commands="create install run tail fetch delete"
script="launch/$(basename "${BASH_SOURCE[0]}")"
action="${1:-}"
case "$action" in
    -h | --help)
        sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$script"
        exit 0
        ;;
    create | install | run | tail | fetch | delete) shift ;;
    *) fail "Found the command '$action', expected one of $commands." ;;
esac

archive=pemt_jax.tar.gz
name="" zone="" type="" model_dir="" to="" worker=0 spot="" dry_run=""
runtime="" project=()
arguments=()
while (($#)); do
    case "$1" in
        --name | --zone | --type | --runtime | --project | --model_dir | --to | --worker)
            [[ $# -ge 2 && -n "$2" ]] || fail "$1 has no value, expected $1 VALUE."
            case "$1" in
                --name) name="$2" ;;
                --zone) zone="$2" ;;
                --type) type="$2" ;;
                --runtime) runtime="$2" ;;
                --project) project=(--project "$2") ;;
                --model_dir) model_dir="$2" ;;
                --to) to="$2" ;;
                --worker) worker="$2" ;;
            esac
            shift 2
            ;;
        --spot) spot=1 && shift ;;
        --dry-run) dry_run=1 && shift ;;
        --) shift && arguments=("$@") && break ;;
        *) fail "There is no argument '$1', see $script --help." ;;
    esac
done
[[ -n "$name" && -n "$zone" ]] || fail "There is no --name or no --zone, expected both."
where=(--zone "$zone" ${project[@]+"${project[@]}"})

run() {
    if [[ -n "$dry_run" ]]; then
        printf '%q ' "$@" | sed 's/ $//'
        printf '\n'
    else
        "$@"
    fi
}

on_workers() {  # WORKER COMMAND
    run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

warn_of_edits() {  # one line that names the files that differ from the commit, which is installed
    local files
    files="$({ git diff --name-only HEAD && git ls-files -o --exclude-standard -x "/$archive"; } |
        sort | awk 'NR <= 10 { printf "%s%s", separator, $0; separator = ", " }
                    END { if (NR > 10) printf " and %d more", NR - 10 }')"
    [[ -z "$files" ]] ||
        echo "warning: The commit $(git rev-parse --short HEAD) is installed, without your edits of $files." >&2
}

# What TPU VM images of each generation are called; --runtime names another.
if [[ -z "$runtime" ]]; then
    case "$type" in
        v4-*) runtime=tpu-ubuntu2204-base ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
    esac
fi

case "$action" in
    create)
        [[ -n "$type" ]] || fail "There is no --type, expected one such as v5litepod-16."
        [[ -n "$runtime" ]] || fail "No image is known for --type '$type', expected --runtime VERSION."
        run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
            --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot}
        run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
        ;;
    install)
        [[ -n "$dry_run" ]] || warn_of_edits
        run git archive --format=tar.gz --prefix=pemt_jax/ --output="$archive" HEAD
        run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${where[@]}" --worker=all
        on_workers all "rm -rf pemt_jax && tar xzf $archive && (test -x venv/bin/pip || python3.11 -m venv venv || (sudo apt-get update -q && sudo apt-get install -yq python3.11-venv && python3.11 -m venv venv)) && venv/bin/pip install -q './pemt_jax[tpu]'"
        run rm -f "$archive"
        ;;
    run)
        [[ -n "$model_dir" ]] || fail "There is no --model_dir, expected gs://BUCKET/FOLDER or a shared disk."
        ((${#arguments[@]})) || fail "There is nothing to train, expected -- and the arguments of pemt_jax.train."
        train=""
        for argument in "${arguments[@]}" "--gin.MODEL_DIR=$model_dir"; do
            train+=" $(printf '%q' "$argument")"
        done
        # One process per host; it outlives this terminal. Two at once would write one MODEL_DIR.
        on_workers all "if pgrep -u \$USER -f '^venv/bin/python -m pemt_jax.train' >/dev/null; then echo 'error: A run is active here, expected none.' >&2; exit 1; fi; nohup venv/bin/python -m pemt_jax.train$train >train.log 2>&1 </dev/null &"
        ;;
    tail)
        on_workers "$worker" "tail -n 40 -f train.log"
        ;;
    fetch)
        [[ -n "$model_dir" && -n "$to" ]] || fail "There is no --model_dir or no --to, expected both."
        if [[ "$model_dir" == gs://* ]]; then
            run gcloud storage rsync --recursive "$model_dir" "$to"
        else
            run gcloud compute tpus tpu-vm scp --recurse "$name:$model_dir" "$to" "${where[@]}" --worker=0
        fi
        ;;
    delete)
        # A VM that was made without a queue has no queued resource; the first that exists goes.
        if [[ -n "$dry_run" ]] || gcloud compute tpus queued-resources describe "$name" "${where[@]}" >/dev/null 2>&1; then
            run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
        else
            run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
        fi
        ;;
esac
