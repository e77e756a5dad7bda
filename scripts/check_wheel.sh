#!/usr/bin/env bash
# Builds the source distribution and the wheel, checks what the wheel holds, installs both in empty environments and uses
# them there, under the oldest PyTorch and the newest; then dist/ has the two. Arguments are Pythons with a PyTorch, for
# those of .venv-oldest and .venv; the last one builds, and runs the documentation's blocks as well.
set -euo pipefail
if [ $# = 0 ]; then
    source "$(dirname "$0")/setup_oldest.sh"
    set -- .venv-oldest/bin/python .venv/bin/python
else
    cd "$(dirname "$0")/.."
fi
exec "${!#}" scripts/check_wheel.py "$@"
