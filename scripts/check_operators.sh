#!/usr/bin/env bash
# Holds the three operators, with both backward passes, to the definition in random cases: 20,000 of each, or as many as
# the argument or ADDERZOO_CASES says (the tests take 300). Takes nine minutes. Other arguments go to pytest.
set -euo pipefail
EXTRAS=dev
source "$(dirname "$0")/setup.sh"
export ADDERZOO_CASES=${1:-${ADDERZOO_CASES:-20000}} OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --timeout 0 --durations 3 "${@:2}" \
    tests/ops/test_adder2d.py::test_forward_and_gradients_match_the_definition \
    tests/ops/test_adder2d_affine.py::test_operator_and_reference_match_the_definition \
    tests/ops/test_adder2d_u8.py::test_operator_and_reference_equal_the_definition
