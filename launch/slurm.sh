#!/usr/bin/env bash
#SBATCH --job-name=dvq_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Many GPU hosts under Slurm: train, prepare or encode, as one process a host that takes all of its GPUs. Flags of
# sbatch change what stands above. Five minutes before the time is over, and where Slurm preempts jobs with
# send_user_signal, processes save and end, and the job queues itself again; it goes on from there, also on another
# number of hosts. A job that fails by itself, or is cancelled, is not queued again.
# usage, in the checkout, on a file system that all hosts see:
#   sbatch --nodes=4 launch/slurm.sh train --config=configs/default.py --config.data.dataset=DATASET --workdir=W
set -euo pipefail

again() {
  scontrol requeue "$SLURM_JOB_ID"
  exit
}

told=
processes=
end() {
  told=1
  [ "$processes" ] || again
  scancel --signal=TERM "$SLURM_JOB_ID" || : # tells the processes, and not this script
  timeout 240 tail --pid="$processes" -f /dev/null || : # they may be in a long pass, which goes on later
}
trap end USR1

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the checkout}"
. launch/environment.sh cuda,text

result=$(mktemp)
trap 'rm -f "$result"' EXIT
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  python -m "dvq_jax.cli.$1" --distributed "${@:2}" >"$result" &
processes=$!
status=0
wait "$processes" || status=$?
if [ "$told" ] && [ -s "$result" ]; then
  status=0 # it is that of the wait, which the signal has interrupted; what has a result has succeeded
fi
cat "$result"
if grep -q '"preempted"' "$result" || { [ "$told" ] && [ "$status" != 0 ]; }; then
  again
fi
exit "$status"
