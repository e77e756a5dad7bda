#!/usr/bin/env bash
# Sets everything up and runs the tests. Arguments go to pytest: bash scripts/test.sh tests/ops -k precision
set -euo pipefail
EXTRAS=dev
source "$(dirname "$0")/setup.sh"
exec .venv/bin/python -m pytest "$@"
