#!/usr/bin/env bash
# Runs the operator's tests under the oldest PyTorch that is supported, with the library that the newest one compiled.
# Takes 6 GB for that PyTorch, in .venv-oldest; arguments go to pytest.
set -euo pipefail
EXTRAS=dev
source "$(dirname "$0")/setup.sh"

if [ ! -e .venv-oldest/installed ]; then
    rm -rf .venv-oldest
    python3 -m venv .venv-oldest
    .venv-oldest/bin/pip install -q "torch==2.11.*" torchvision timm filelock safetensors tqdm "setuptools>=77" ninja \
        numpy hypothesis pytest pytest-timeout
    touch .venv-oldest/installed
fi
export PYTHONPATH=$PWD
.venv-oldest/bin/python -c "
import torch, adderzoo
print('PyTorch', torch.__version__, '-', adderzoo.ops.backend())
assert adderzoo.ops.backend().startswith('compiled at installation')"
.venv-oldest/bin/python -m pytest tests/ops "$@"
