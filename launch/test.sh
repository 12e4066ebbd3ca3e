#!/usr/bin/env bash
# Installs into an environment of its own and runs the tests.
# usage: bash launch/test.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/environment.sh" test

ruff check .
export JAX_PLATFORMS=cpu
exec python -m pytest "$@"
