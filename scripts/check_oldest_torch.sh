#!/usr/bin/env bash
# Builds the wheel on the newest PyTorch and runs the operator's tests with it on the oldest one that is supported.
# Takes 6 GB for another PyTorch, in .venv-oldest; arguments go to pytest.
set -euo pipefail
EXTRAS=dev
source "$(dirname "$0")/setup.sh"
root=$PWD
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
.venv/bin/pip wheel -q --no-build-isolation --no-deps -w "$wheels" .

[ -x .venv-oldest/bin/pip ] || python3 -m venv .venv-oldest
.venv-oldest/bin/pip install -q "torch==2.11.*" torchvision timm filelock safetensors tqdm "setuptools>=77" ninja numpy \
    hypothesis pytest pytest-timeout
.venv-oldest/bin/pip install -q --force-reinstall --no-deps "$wheels"/*.whl
cd "$wheels" # so that `import adderzoo` finds the wheel's, not the checkout's
"$root/.venv-oldest/bin/python" -c "
import torch, adderzoo
print('PyTorch', torch.__version__, '-', adderzoo.ops.backend())
assert adderzoo.ops.backend().startswith('compiled at installation')"
"$root/.venv-oldest/bin/pytest" -c "$root/pyproject.toml" --rootdir "$root" "$root/tests/ops" "$@"
