# Sourced by the other scripts: makes .venv, and .venv-oldest with the oldest PyTorch that is supported, which takes 6 GB.
EXTRAS=dev
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [ ! -e .venv-oldest/installed ]; then
    rm -rf .venv-oldest
    python3 -m venv .venv-oldest
    # Its Triton's interpreter cannot use NumPy 2.4.
    .venv-oldest/bin/pip install -q "torch==2.11.*" torchvision timm filelock safetensors tqdm "setuptools>=77" ninja \
        "numpy<2.4" hypothesis pytest pytest-timeout
    touch .venv-oldest/installed
fi
