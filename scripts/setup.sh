# Sourced by the other scripts: makes .venv with the package and the extras that EXTRAS names; quick when repeated.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

if [ ! -x .venv/bin/pip ]; then
    rm -rf .venv
    if ! python3 -m venv .venv >/dev/null 2>&1; then
        # Debian's python3 lacks the module that installs pip.
        sudo=""
        [ "$(id -u)" = 0 ] || sudo="sudo"
        $sudo apt-get update -qq && $sudo apt-get install -qq -y python3-venv
        rm -rf .venv
        python3 -m venv .venv
    fi
fi

stamp=.venv/installed-$EXTRAS
if [ ! -e "$stamp" ] || [ -n "$(find pyproject.toml setup.py csrc adderzoo/ops/_build.py -newer "$stamp")" ]; then
    echo "Setting up .venv: PyTorch is large, the first time takes some minutes." >&2
    # Compiling needs the headers of the PyTorch that the package will run on, so no isolated build.
    .venv/bin/pip install -q "torch>=2.11" torchvision "setuptools>=77" ninja
    .venv/bin/pip install -q --no-build-isolation -e ".[$EXTRAS]"
    touch "$stamp"
fi
