"""Networks for microcontrollers: integers to the end, and C."""

from .conversion import integer_network, observe
from .integer import IntegerNetwork
from .writing import write_c

__all__ = ["IntegerNetwork", "integer_network", "observe", "write_c"]
