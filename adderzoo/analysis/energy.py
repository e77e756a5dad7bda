"""Scalar operations, and what they take on a chip."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

# Picojoules of an operation on a 45 nm chip, the figures that papers on adder networks count with: M. Horowitz,
# "Computing's Energy Problem" (ISSCC 2014), and for shifts of 32 and 8 bits H. You et al., "ShiftAddNet" (NeurIPS
# 2020), Table 1. Neither has one for an XNOR of two bits, which is a gate or two of the hundreds of an adder.
PICOJOULES: Mapping[str, Mapping[str, float]] = {
    "float32": {"mul": 3.7, "add": 0.9, "shift": 0.13},
    "int8": {"mul": 0.2, "add": 0.03, "shift": 0.024},
}


@dataclass(frozen=True)
class Operations:
    """Scalar operations.

    Attributes:
        mul: Multiplications.
        add: Additions and subtractions.
        xnor: Products of two bits, of binary layers; an AND for some of them.
        shift: Multiplications by powers of two.
    """

    mul: int = 0
    add: int = 0
    xnor: int = 0
    shift: int = 0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __mul__(self, times: int) -> "Operations":
        return Operations(*(getattr(self, each.name) * times for each in fields(self)))

    def energies(self, type: str = "float32") -> dict[str, float]:
        """What they take on a 45 nm chip, by their names, in millijoules; memory is not counted.

        Args:
            type: Of all numbers, "float32" or "int8". The products of bits are counted up, one addition for each XNOR,
                in integers whatever the type; the XNOR itself is counted as nothing.

        Raises:
            ValueError: if it is neither.
        """
        if type not in PICOJOULES:
            raise ValueError(f"type must be one of {', '.join(PICOJOULES)}, got {type!r}")
        each, counting_up = PICOJOULES[type], PICOJOULES["int8"]["add"]
        picojoules = {
            "mul": self.mul * each["mul"],
            "add": (self.add - self.xnor) * each["add"] + self.xnor * counting_up,
            "xnor": 0.0,
            "shift": self.shift * each["shift"],
        }
        return {name: 1e-9 * value for name, value in picojoules.items()}

    def energy(self, type: str = "float32") -> float:
        """What they take together, see :meth:`energies`."""
        return sum(self.energies(type).values())

    def latency(self, mul: int = 4, add: int = 2) -> int | None:
        """Cycles that they take one after the other, the measure of the AdderNet paper (section 4.1).

        Args:
            mul: Cycles of a multiplication; by default that of floats on a VIA Nano 2000, by Agner Fog's instruction
                tables.
            add: Likewise.

        Returns:
            The cycles; None where there are XNORs or shifts, of which the paper has none.
        """
        return None if self.xnor or self.shift else self.mul * mul + self.add * add
