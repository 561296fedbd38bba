"""How every ONNX operator is written in torch: one table, collected from an explicit tuple of families."""

from collections.abc import Mapping

from graphprune.passes.importer.call import Operator
from graphprune.passes.importer.operators import (
    conv,
    elementwise,
    indexing,
    linear,
    movement,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    sizes,
)

__all__ = ["FAMILIES", "OPERATORS"]

FAMILIES = (conv, linear, norm, elementwise, reduce, pool, resize, movement, indexing, sizes, recurrent, quantize)


def _table() -> dict[str, Operator]:
    table: dict[str, Operator] = {}
    for family in FAMILIES:
        for kind, operator in family.OPERATORS.items():
            if kind in table:
                raise ValueError(f"{kind} is written twice")
            table[kind] = operator
    return table


OPERATORS: Mapping[str, Operator] = _table()
