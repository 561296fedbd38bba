from pathlib import Path

import onnx

from graphprune.passes.channels.rules import ONNX
from graphprune.passes.onnx.operators import table

DOCUMENT = Path(__file__).parents[3] / "docs" / "onnx_operators.md"


def test_the_documented_table_is_the_rule_table():
    assert DOCUMENT.read_text() == table()


def test_every_rule_is_bound_to_an_operator_that_exists():
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert {name for name in ONNX if "." not in name} <= known
    assert {"Conv", "LSTM", "QLinearConv", "DequantizeLinear", "Resize"} <= set(ONNX)
