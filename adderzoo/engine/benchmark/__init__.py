"""What adder networks cost on a machine, beside CNNs and beside what there was before the operator.

:mod:`.layers` measures the operator against the machine's own ceiling, :mod:`.networks` whole networks against one
another; both measure in turns with :mod:`.timing`.
"""

from .layers import OperatorResult, measure_operator
from .networks import PARTS, Section, default_batches, measure_networks, twin_of
from .report import Report, describe_machine, draw, import_matplotlib, kinds_table, operator_table, section_table

__all__ = [
    "PARTS",
    "OperatorResult",
    "Report",
    "Section",
    "default_batches",
    "describe_machine",
    "draw",
    "import_matplotlib",
    "kinds_table",
    "measure_networks",
    "measure_operator",
    "operator_table",
    "section_table",
    "twin_of",
]
