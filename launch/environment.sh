# Sourced by the scripts of this folder: makes an environment of its own, .venv, and installs into it.
# usage: . launch/environment.sh EXTRAS
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: dvq_jax needs Python 3.11 or newer; set PYTHON=/path/to/python3." >&2
  exit 2
}
[ -x .venv/bin/pip ] || "$PYTHON" -m venv .venv
echo "installing into $PWD/.venv" >&2
.venv/bin/python -m pip install --quiet --editable ".[$1]"
PATH="$PWD/.venv/bin:$PATH"
