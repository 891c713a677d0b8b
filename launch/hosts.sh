#!/usr/bin/env bash
# Trains on plain hosts that ssh reaches without a password. Each host runs one process, which uses
# all GPUs of the host.
#
#   HOSTS="gpu1 gpu2 gpu3" launch/hosts.sh configs/e3d_gpt/mae.py [--field value ...]
#
# FOLDER is on a file system that all hosts share (NFS). It holds this repository with its .venv,
# the data and runs/. The output of all hosts appears here, each line with the host's name. Ctrl-C
# saves a checkpoint and ends training; the same command resumes it.
set -uo pipefail

: "${HOSTS:?names of the hosts, the first one is process 0}"
FOLDER="${FOLDER:-$PWD}"
PORT="${PORT:-8476}"
REMOTE="${REMOTE:-ssh -o BatchMode=yes}"
read -ra hosts <<<"$HOSTS"
arguments=$(printf '%q ' "$@")

# A signal to one process is enough: the processes agree on a step and all stop there.
stop() {
    $REMOTE "${hosts[0]}" "kill -TERM \$(cat ${FOLDER@Q}/runs/.launched)"
}

pids=()
for number in "${!hosts[@]}"; do
    settings="JAX_COORDINATOR_ADDRESS=${hosts[0]}:$PORT JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$number"
    [ "$number" -eq 0 ] && note='mkdir -p runs && echo $$ >runs/.launched &&' || note=''
    $REMOTE "${hosts[number]}" \
        "cd ${FOLDER@Q} && $note exec env $settings .venv/bin/python -u run.py train $arguments" \
        </dev/null > >(sed -u "s/^/${hosts[number]}: /") 2>&1 &
    pids+=($!)
done
trap 'stop; wait' INT TERM

status=0
for pid in "${pids[@]}"; do
    wait "$pid" || status=$?
done
exit "$status"
