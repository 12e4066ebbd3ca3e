#!/usr/bin/env bash
#SBATCH --job-name=dvq_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Many GPU hosts under Slurm, a process a host: trains on all of their GPUs. Flags of sbatch change what stands
# above. Five minutes before the time is over, or when the job is preempted, training saves and ends; the job
# then queues itself again and goes on from there, also on another number of hosts.
# usage, in the checkout, on a file system that all hosts see:
#   sbatch --nodes=4 launch/slurm.sh --config=configs/default.py --config.data.dataset=DATASET --workdir=W
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the checkout}"
. launch/environment.sh cuda

result=$(mktemp)
trap 'rm -f "$result"' EXIT
trap : TERM # is for training; this script lives on to queue the job again
srun --kill-on-bad-exit=1 python -m dvq_jax.cli.train --distributed "$@" | tee "$result"
if grep -q '"preempted"' "$result"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
