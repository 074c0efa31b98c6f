#!/usr/bin/env bash
# Run a command as several processes of this machine that are one run:
#     ./launch/local_processes.sh --processes 2 -- python -m pemt_jax.train --gin_file=...
#
#   --processes N     how many; 2 when not given
#   --devices N       virtual CPU devices per process; 1 when not given
#   --port PORT       of process 0's coordinator; a free one when not given
#   --dry-run         print every command and do nothing
#
# The processes compute on the CPU, with gloo between them, unless JAX_PLATFORMS says otherwise.
# SIGTERM, SIGINT and SIGHUP reach every process as SIGTERM. The exit code is that of the first
# process that fails, 0 if none does; the others end by themselves (pemt_jax/parallel/watchdog.py).
#
# How many seconds the processes wait for each other:
#   PEMT_JAX_START_SECONDS    for all to join; 300 when not set
#   PEMT_JAX_SILENCE_SECONDS  for a sign of life, and in a training step; 40 when not set
#   PEMT_JAX_READ_SECONDS     for one that reads its batch; 600 when not set
set -uo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

processes=2 devices=1 port="" dry_run=""
while (($#)); do
    case "$1" in
        --processes | --devices | --port)
            [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || fail "Found $1 '${2:-}', expected a positive number."
            declare "${1#--}=$2"
            shift 2
            ;;
        --dry-run) dry_run=1 && shift ;;
        --) shift && break ;;
        --help) sed -n '2,/^set/{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" && exit ;;
        *) fail "There is no argument '$1', expected --processes, --devices, --port, --dry-run or --." ;;
    esac
done
(($#)) || fail "Found no command, expected one after --."

answers() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

if [[ -z "$port" ]]; then
    port=$((20000 + RANDOM % 10000))
    while answers "$port"; do port=$((20000 + RANDOM % 10000)); done
    [[ -z "$dry_run" ]] || port=PORT
fi

children=()
for ((index = 0; index < processes; index++)); do
    variables=(
        "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}"
        "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port"
        "JAX_NUM_PROCESSES=$processes"
        "JAX_PROCESS_ID=$index"
        "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
    )
    if [[ -n "$dry_run" ]]; then
        # Quoted, so that a shell reads back what it would run.
        printf 'env%s &\n' "$(printf ' %q' "${variables[@]}" "$@")"
    else
        env "${variables[@]}" "$@" &
        children+=("$!")
    fi
done
[[ -z "$dry_run" ]] || exit 0

# Background processes of a script ignore Ctrl-C, so each signal becomes the one that they obey.
trap 'for child in "${running[@]}"; do kill -TERM "$child" 2>/dev/null; done' TERM INT HUP

code=0 running=("${children[@]}")
while ((${#running[@]})); do
    sleep 0.2
    left=()
    for child in "${running[@]}"; do
        if kill -0 "$child" 2>/dev/null; then
            left+=("$child")
        else
            wait "$child"
            ended=$?
            ((code)) || code=$ended
        fi
    done
    running=("${left[@]+"${left[@]}"}")
done
exit "$code"
