#!/usr/bin/env bash
# Sets everything up and runs the tests, a process a core. Arguments go to pytest: bash scripts/test.sh tests/ops -k fake
set -euo pipefail
EXTRAS=dev
source "$(dirname "$0")/setup.sh"
say "Running the tests, a process a core: half an hour or so for all of them on two cores"
# Several processes of several threads would wait for each other more than they compute.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations 20 "$@"
