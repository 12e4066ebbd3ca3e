# Sourced by the scripts of this folder: makes an environment of its own, .venv, and installs into it what
# setup.py wants, where that is not done yet. Hosts or jobs that share the checkout take turns, so the disk that
# they share must know file locks: NFS does, a mounted bucket does not.
# usage: . launch/environment.sh EXTRAS
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: dvq_jax needs Python 3.11 or newer; set PYTHON=/path/to/python3." >&2
  exit 2
}
( # the lock is held until this shell ends
  if command -v flock >/dev/null; then flock 9; fi
  if ! cmp -s setup.py ".venv/installed-$1"; then
    [ -x .venv/bin/pip ] || "$PYTHON" -m venv .venv
    echo "installing into $PWD/.venv" >&2
    .venv/bin/python -m pip install --quiet --editable ".[$1]"
    cp setup.py ".venv/installed-$1"
  fi
) 9>.venv.lock
PATH="$PWD/.venv/bin:$PATH"
# By cuBLAS alone: to try Triton's products too takes XLA ten seconds a shape, and none was faster (docs/performance.md).
case "$1" in cuda*) export XLA_FLAGS="--xla_gpu_enable_triton_gemm=false ${XLA_FLAGS:-}" ;; esac
