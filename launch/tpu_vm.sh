#!/usr/bin/env bash
# One TPU VM, or each host of a pod slice: installs into .venv and runs a command of dvq_jax on its chips.
# usage: bash launch/tpu_vm.sh train --config=configs/default.py --config.data.dataset=DATASET --workdir=W
set -euo pipefail
. "$(dirname "$0")/environment.sh" tpu,text

exec python -m "dvq_jax.cli.$1" "${@:2}"
