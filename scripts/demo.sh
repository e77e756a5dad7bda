#!/usr/bin/env bash
# Sets everything up and shows an adder network at work on real images, beside its CNN twin.
set -euo pipefail
EXTRAS=demo,onnx # what the documentation's blocks take
source "$(dirname "$0")/setup.sh"
say "Comparing an adder network with its CNN twin, on digits and on a photograph: about half a minute"
exec .venv/bin/python scripts/demo.py "$@"
