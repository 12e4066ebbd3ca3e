#!/usr/bin/env bash
# Installs into an environment of its own and runs the tests, a file at a time in each of two processes.
# usage: bash launch/test.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/environment.sh" test

ruff check .
export JAX_PLATFORMS=cpu
exec python -m pytest --numprocesses=2 --dist=loadfile "$@"
