#!/usr/bin/env bash
# Train on a Cloud TPU: rent a slice, install this checkout on every worker, run, look, clean up.
#     launch/tpu_vm.sh create  --name NAME --zone ZONE --type v5litepod-16 [--spot] [--runtime VERSION]
#     launch/tpu_vm.sh install --name NAME --zone ZONE        (the commit checked out, no edits)
#     launch/tpu_vm.sh run     --name NAME --zone ZONE --model_dir gs://BUCKET/runs/x -- ARGUMENTS
#     launch/tpu_vm.sh tail    --name NAME --zone ZONE [--worker N]
#     launch/tpu_vm.sh fetch   --name NAME --zone ZONE --model_dir gs://BUCKET/runs/x --to FOLDER
#     launch/tpu_vm.sh delete  --name NAME --zone ZONE
#     launch/tpu_vm.sh babysit (the flags of create and run, and [--poll SECONDS] [--restarts N])
#
# ARGUMENTS are those of `python -m pemt_jax.train`. A TPU VM that exists already needs no `create`;
# `create` waits until the slice is there (Ctrl-C leaves the request in its queue). The same `run`
# again resumes the run in MODEL_DIR, after a preemption on a new slice.
#
# `babysit` does all of this until the run has ended: it creates the slice if there is none or it was
# preempted, installs, runs, looks every --poll seconds (60), and runs again when a process was lost
# or preempted, at most --restarts times (100). It ends with the run's exit code: 0, or 1 or 2, which
# would only be repeated. It may be stopped and started again; the run does not notice. The slice
# stays until `delete`.
#
# MODEL_DIR and data are on gs:// (or a disk that all workers share). --project PROJECT selects a
# project other than gcloud's own; --dry-run prints the commands instead of running them. gcloud's
# login is used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 2
}

commands="create install run tail fetch delete babysit"
script="launch/$(basename "${BASH_SOURCE[0]}")"
action="${1:-}"
case "$action" in
    -h | --help)
        sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$script"
        exit 0
        ;;
    create | install | run | tail | fetch | delete | babysit) shift ;;
    *) fail "Found the command '$action', expected one of $commands." ;;
esac

archive=pemt_jax.tar.gz
name="" zone="" type="" model_dir="" to="" worker=0 spot="" dry_run=""
runtime="" project=() poll=60 restarts=100
arguments=()
while (($#)); do
    case "$1" in
        --name | --zone | --type | --runtime | --project | --model_dir | --to | --worker | --poll | --restarts)
            [[ $# -ge 2 && -n "$2" ]] || fail "$1 has no value, expected $1 VALUE."
            case "$1" in
                --project) project=(--project "$2") ;;
                --poll | --restarts)
                    [[ "$2" =~ ^[0-9]+$ ]] || fail "Found $1 '$2', expected a number."
                    declare "${1#--}=$2"
                    ;;
                *) declare "${1#--}=$2" ;;
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
    create | babysit)
        [[ -n "$type" ]] || fail "There is no --type, expected one such as v5litepod-16."
        [[ -n "$runtime" ]] || fail "No image is known for --type '$type', expected --runtime VERSION."
        ;;
esac
case "$action" in
    run | babysit)
        [[ -n "$model_dir" ]] || fail "There is no --model_dir, expected gs://BUCKET/FOLDER or a shared disk."
        ((${#arguments[@]})) || fail "There is nothing to train, expected -- and the arguments of pemt_jax.train."
        ;;
esac

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

# The state of the slice's request: ACTIVE, SUSPENDED (preempted), ..., MISSING when there is none,
# UNKNOWN when gcloud has no answer.
state() {
    local answer
    if answer="$(run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>&1)"; then
        tail -n 1 <<<"$answer"
    elif [[ "$answer" == *NOT_FOUND* ]]; then
        echo MISSING
    else
        echo UNKNOWN
    fi
}

create() {  # fails when there is no such request; a slice that is taken away again is not a failure
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
        --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot} || return
    await_slice || true
}

await_slice() {
    local now before=""
    while true; do
        now="$(state)"
        [[ "$now" == "$before" ]] || echo "$now"
        [[ -z "$dry_run" ]] || return 0
        case "$now" in
            ACTIVE) return 0 ;;
            FAILED | SUSPENDING | SUSPENDED | MISSING) return 1 ;;
        esac
        before="$now"
        sleep "$poll"
    done
}

delete() {
    # A VM that was made without a queue has no queued resource; the first that exists goes.
    if [[ -n "$dry_run" || "$(state)" != MISSING ]]; then
        run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    else
        run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
    fi
}

warn_of_edits() {  # one line that names the files that differ from the commit, which is installed
    local files
    files="$({ git diff --name-only HEAD && git ls-files -o --exclude-standard -x "/$archive"; } |
        sort | awk 'NR <= 10 { printf "%s%s", separator, $0; separator = ", " }
                    END { if (NR > 10) printf " and %d more", NR - 10 }')"
    [[ -z "$files" ]] ||
        echo "warning: The commit $(git rev-parse --short HEAD) is installed, without your edits of $files." >&2
}

install() {
    local code=0
    [[ -n "$dry_run" ]] || warn_of_edits
    run git archive --format=tar.gz --prefix=pemt_jax/ --output="$archive" HEAD &&
        run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${where[@]}" --worker=all &&
        on_workers all "rm -rf pemt_jax train.code && tar xzf $archive && (test -x venv/bin/pip || python3.11 -m venv venv || (sudo apt-get update -q && sudo apt-get install -yq python3.11-venv && python3.11 -m venv venv)) && venv/bin/pip install -q './pemt_jax[tpu,gs]' && touch installed" || code=$?
    run rm -f "$archive"
    return "$code"
}

# One process per host, which outlives this terminal and holds a lock as long as it lives: two at once
# would write one MODEL_DIR. Its exit code is left in train.code.
start() {
    local train="venv/bin/python -m pemt_jax.train"
    for argument in "${arguments[@]}" "--gin.MODEL_DIR=$model_dir"; do
        train+=" $(printf '%q' "$argument")"
    done
    train+=' >>train.log 2>&1; echo $? >train.code'
    on_workers all "flock -n train.lock true || { echo 'error: A run is active here, expected none.' >&2; exit 1; }; rm -f train.code; setsid nohup flock train.lock bash -c $(printf '%q' "$train") >/dev/null 2>&1 </dev/null & echo \$! >train.group"
}

# What each worker says of its run: bare (nothing installed), running, none, or its exit code.
look() {
    on_workers all "if test ! -e installed; then echo run: bare; elif ! flock -n train.lock true; then echo run: running; else echo run: \$(cat train.code 2>/dev/null || echo none); fi" | sed -n 's/^run: //p'
}

babysit() {
    local found code since=$SECONDS starts=0 again=" 42 134 137 143 none "
    if [[ -n "$dry_run" ]]; then
        create && install && start && return
    fi
    while true; do
        case "$(state)" in
            ACTIVE) ;;
            UNKNOWN) sleep "$poll" && continue ;;
            MISSING)
                echo "Creating the slice $name."
                create || return 1
                ;;
            FAILED | SUSPENDING | SUSPENDED)
                echo "The slice $name was taken away."
                delete || sleep "$poll"
                continue
                ;;
            *) await_slice || continue ;;
        esac
        if ! found="$(look | sort -u | xargs)" || [[ -z "$found" ]]; then
            echo "Not all workers answer."
            sleep "$poll" && continue  # if they are being taken away, the state will say so
        elif [[ " $found " == *" bare "* ]]; then
            install || sleep "$poll"
        elif [[ " $found " == *" running "* ]]; then
            ((starts)) || starts=1  # an earlier babysit's
            # Processes that lost another end within a minute; one that hangs has to be killed.
            if [[ "$found" == running ]]; then
                since=$SECONDS
            elif ((SECONDS - since > 120)); then
                on_workers all "flock -n train.lock true || kill -KILL -- -\$(cat train.group)" || true
            fi
            sleep "$poll"
        else
            if ((starts)); then
                for code in $found; do  # a failure of its own goes before what followed from it
                    [[ "$again" == *" $code "* || "$code" == 0 ]] && continue
                    echo "The run ended with exit code $code." >&2
                    return "$code"
                done
                [[ "$found" != 0 ]] || return 0
                ((starts <= restarts)) || return 42
            fi
            echo "Starting the run ($found)."
            start || true
            starts=$((starts + 1)) since=$SECONDS
            sleep "$poll"
        fi
    done
}

case "$action" in
    create) create ;;
    install) install ;;
    run) start ;;
    tail) on_workers "$worker" "tail -n 40 -f train.log" ;;
    fetch)
        [[ -n "$model_dir" && -n "$to" ]] || fail "There is no --model_dir or no --to, expected both."
        if [[ "$model_dir" == gs://* ]]; then
            run mkdir -p "$to"
            run gcloud storage rsync --recursive "$model_dir" "$to"
        else
            run gcloud compute tpus tpu-vm scp --recurse "$name:$model_dir" "$to" "${where[@]}" --worker=0
        fi
        ;;
    delete) delete ;;
    babysit) babysit ;;
esac
