#!/usr/bin/env bash
# A TPU pod slice: train, prepare or encode on all of its hosts, started from your own machine. Embeddings, dataset
# and workdir are at the same paths on all hosts, on a disk or bucket that they share. So is the checkout, on a disk
# that knows file locks (see environment.sh), or each host has a copy of it there.
# usage: TPU=NAME ZONE=ZONE CHECKOUT=/path/on/the/hosts bash launch/tpu_pod.sh train --config=configs/default.py \
#          --config.data.dataset=DATASET --workdir=W
set -euo pipefail
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}" "${CHECKOUT:?where the checkout is on its hosts}"

command="bash$(printf ' %q' "$CHECKOUT/launch/tpu_vm.sh" "$@") --distributed"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
