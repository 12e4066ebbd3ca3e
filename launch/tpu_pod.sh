#!/usr/bin/env bash
# A TPU pod slice: starts training on each of its hosts, from your own machine. The checkout, the dataset and the
# workdir are at the same paths on all hosts, on a disk or bucket that they share; the checkout may be a copy.
# usage: TPU=NAME ZONE=ZONE CHECKOUT=/path/on/the/hosts bash launch/tpu_pod.sh --config=configs/default.py \
#          --config.data.dataset=DATASET --workdir=W
set -euo pipefail
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}" "${CHECKOUT:?where the checkout is on its hosts}"

command="bash $(printf '%q' "$CHECKOUT")/launch/tpu_vm.sh train --distributed$(printf ' %q' "$@")"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
