#!/usr/bin/env bash
# Trains on a Cloud TPU slice: runs the same command on each host. JAX finds the other hosts.
#
#   TPU=my-slice ZONE=us-west4-a PROJECT=my-project launch/tpu_pod.sh configs/e3d_gpt/mae.py [--field value ...]
#
# The slice must exist. To create one:
#   gcloud compute tpus tpu-vm create my-slice --zone us-west4-a --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite
# FOLDER is on a file system that all hosts share (Filestore, a mounted bucket). It holds this
# repository with its .venv, the data and runs/. The same command resumes from the last checkpoint.
set -euo pipefail

: "${TPU:?name of the slice}" "${ZONE:?its zone}" "${PROJECT:?your project}"
FOLDER="${FOLDER:-/mnt/shared/m3djax}"
arguments=$(printf '%q ' "$@")

exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --project "$PROJECT" --worker=all \
    --command "cd ${FOLDER@Q} && .venv/bin/python -u run.py train $arguments"
