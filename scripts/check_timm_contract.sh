#!/usr/bin/env bash
# Runs timm's own tests of models, from the source distribution of the installed timm, on every classifier of this
# package; they have none for networks for super-resolution. Takes minutes; arguments go to pytest. The test that loads
# the AdderNet authors' checkpoint downloads it, unless it lies in $TORCH_HOME/hub/checkpoints.
set -euo pipefail
EXTRAS=dev
source "$(dirname "$0")/setup.sh"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
version=$(.venv/bin/python -c "import importlib.metadata as metadata; print(metadata.version('timm'))")
.venv/bin/pip install -q pdm-backend  # pip asks a source distribution's build backend for its metadata
.venv/bin/pip download -q --no-deps --no-binary :all: --no-build-isolation -d "$folder" "timm==$version"
tar -xzf "$folder/timm-$version.tar.gz" -C "$folder"

# timm's tests ask its registry for the networks to test; this plugin answers with ours, whatever family they ask for.
cat >"$folder/only_adderzoo.py" <<'PLUGIN'
import timm

import adderzoo

everything = timm.list_models
modules = [module for module in timm.list_modules() if module.startswith("adder_")]
ours = [module for module in modules if not module.startswith(("adder_edsr", "adder_vdsr"))]  # the classifiers


def list_models(filter="", module="", pretrained=False, exclude_filters="", name_matches_cfg=False, include_tags=None):
    return everything(filter, ours, pretrained, exclude_filters, include_tags=include_tags)


def pytest_collection_modifyitems(config, items):
    names = {*list_models(), *list_models(include_tags=True)}
    tested = {item: item.callspec.params.get("model_name") for item in items if hasattr(item, "callspec")}
    config.hook.pytest_deselected(items=[item for item in items if tested.get(item) not in names])
    items[:] = [item for item in items if tested.get(item) in names]
    assert set(list_models()) <= set(tested.values()), "a network is not tested"


timm.list_models = list_models
timm.list_pretrained = lambda filter="", **_: everything(filter, ours, True)
PLUGIN

export PYTHONPATH=$folder
tag=adder_resnet20.huawei_cifar10
file=${TORCH_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/torch}/hub/checkpoints/ResNet20-AdderNet.pth
without=()
if [ ! -e "$file" ] && ! .venv/bin/python - 2>/dev/null <<FETCH
import adderzoo, timm, urllib.request
urllib.request.urlopen(timm.get_pretrained_cfg("$tag").url, timeout=20)
FETCH
then
    echo "Leaving out the two tests that load $tag: $file is absent, and so is the network." >&2
    without=(--deselect "tests/test_models.py::test_model_load_pretrained[1-$tag]"
        --deselect "tests/test_models.py::test_model_features_pretrained[1-$tag]")
fi
python=$PWD/.venv/bin/python
cd "$folder/timm-$version"
rm -rf timm  # the installed one is tested
"$python" -m pytest -p only_adderzoo -q tests/test_models.py "${without[@]}" "$@"
