#!/usr/bin/env bash
# Runs the operator's tests under the oldest PyTorch that is supported, with the library that the newest one compiled.
# Takes 6 GB for that PyTorch, in .venv-oldest; arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup_oldest.sh"
export PYTHONPATH=$PWD
.venv-oldest/bin/python -c "
import torch, adderzoo
print('PyTorch', torch.__version__, '-', adderzoo.ops.backend())
assert adderzoo.ops.backend().startswith('compiled at installation')"
.venv-oldest/bin/python -m pytest tests/ops "$@"
