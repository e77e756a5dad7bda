import json
import subprocess
import sys

import pytest

MIB = 1 << 20

# Each function's rise is known; in a process of its own, since measuring changes how malloc works.
SCRIPT = """
import json, mmap, torch
from adderzoo.engine.benchmark.memory import peak_rise

MIB = 1 << 20
def at_once(): return [torch.ones(20 * MIB // 4) for _ in range(3)]
def in_turn():
    for _ in range(3): torch.ones(20 * MIB // 4)
def many_small(): return [torch.ones(MIB // 4 // 4) for _ in range(160)]
def not_pytorchs(): return bytearray(b"x") * (30 * MIB)
def early_peak():
    torch.ones(50 * MIB // 4)
    return torch.ones(10 * MIB // 4)
def one_by_one_into_holes():
    for size in range(1, 33): torch.ones(size * MIB // 4)
def untouched(): return torch.empty(100 * MIB // 4)

del at_once()[:]  # from now on malloc takes blocks of this size from the heap
holes = [torch.ones(40 * MIB // (4 * 8)) for _ in range(16)]
del holes[::2]
hoard = [torch.ones(MIB // 32 // 4) for _ in range(3200)]  # malloc keeps what is freed of these
del hoard[::2]
keep = hoard[::100]
del hoard
functions = (at_once, in_turn, many_small, not_pytorchs, early_peak, one_by_one_into_holes, untouched)
print(json.dumps({function.__name__: peak_rise(function) for function in functions}))
"""


@pytest.fixture(scope="module")
def rises() -> dict[str, float]:
    """In MiB."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return {name: rise / MIB for name, rise in json.loads(done.stdout).items()}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("at_once", 60),
        ("in_turn", 20),
        ("many_small", 40),
        ("not_pytorchs", 30),
        ("early_peak", 50),
        ("one_by_one_into_holes", 32),
        ("untouched", 0),
    ],
)
def test_a_known_allocation(rises: dict[str, float], function: str, expected: float) -> None:
    assert rises[function] == pytest.approx(expected, abs=1)
