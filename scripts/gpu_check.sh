#!/usr/bin/env bash
# Tests and measures on an NVIDIA GPU what needs one, and prints one table; gpu_check.json holds everything. Arguments are
# steps (--help lists them), each of ten minutes at most; all of them if none is named. PYTHON=python3 takes that Python
# as it is, where nothing can be installed.
set -euo pipefail
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
    echo "gpu_check.sh: no NVIDIA GPU is found here (by nvidia-smi)" >&2
    exit 1
fi
if [ -z "${PYTHON:-}" ]; then
    EXTRAS=dev
    source "$(dirname "$0")/setup.sh"
    PYTHON=.venv/bin/python
else
    cd "$(dirname "$0")/.."
fi
exec "$PYTHON" scripts/gpu_check.py "$@"
