#!/usr/bin/env bash
# One host with NVIDIA GPUs: installs into .venv and runs a command of dvq_jax on all of them.
# usage: bash launch/gpu.sh train --config=configs/default.py --config.data.dataset=DATASET --workdir=W
set -euo pipefail
. "$(dirname "$0")/environment.sh" cuda,text

exec python -m "dvq_jax.cli.$1" "${@:2}"
