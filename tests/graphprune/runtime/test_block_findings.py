"""What falls out of the layout in blocks of channels, and why."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphprune.runtime.machine import machine_facts
from graphprune.runtime.optimized import optimized_graph

pytestmark = pytest.mark.skipif(machine_facts().conv_block == 1, reason="no blocked layout on this processor")

BLOCK = machine_facts().conv_block
WIDE = 2 * BLOCK
RESIZE = "float[4] times = {1, 1, 2, 2}"
AVERAGE = "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]"


def between(middle, literals="", width=WIDE, behind=None):
    """Two convolutions and what stands between them: from `a` to `m`."""
    behind = behind or width
    text = f"""<ir_version: 8, opset_import: ["" : 18]> net (float[1,8,16,16] x) => (float[a,b,c,d] y)
    <float[{width},8,3,3] first, float[8,{behind},3,3] last{", " if literals else ""}{literals}> {{
        a = Conv<pads = [1, 1, 1, 1]>(x, first)  {middle}  y = Conv<pads = [1, 1, 1, 1]>(m, last)
    }}"""
    model = onnx.parser.parse_model(text)
    for value in model.graph.value_info:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(np.ones(sizes, np.float32), value.name))
    del model.graph.value_info[:]
    return optimized_graph(model.SerializeToString())


def resized(mode, placed, more=""):
    return f'm = Resize<mode = "{mode}", coordinate_transformation_mode = "{placed}"{more}>(a, , times)'


FLOOR = ', nearest_mode = "floor"'
BRANCH = "b = Conv<pads = [1, 1, 1, 1]>(x, other)"


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        ("AveragePool", (f"m = {AVERAGE}, ceil_mode = 1, count_include_pad = 1>(a)",), "ceil_mode together with count"),
        ("MaxPool", ("m = MaxPool<kernel_shape = [2, 2]>(a)", "", BLOCK + 4), "channels are no multiple"),
        ("Resize", (resized("nearest", "half_pixel"), RESIZE), "by nearest with half_pixel has no blocked kernel"),
        ("Resize", (resized("linear", "pytorch_half_pixel"), RESIZE), "by linear with pytorch_half_pixel has no"),
        ("Resize", (resized("cubic", "half_pixel"), RESIZE), "by cubic with half_pixel has no blocked kernel"),
        ("Resize", (resized("nearest", "asymmetric"), RESIZE), "rounds by round_prefer_floor"),
        (
            *("Resize", (resized("nearest", "asymmetric", FLOOR), RESIZE.replace("2, 2", "1.5, 1.5"))),
            "no whole number of times",
        ),
        (
            "Concat",
            (f"{BRANCH} m = Concat<axis = 1>(a, b)", f"float[{BLOCK + 4},8,3,3] other", WIDE, WIDE + BLOCK + 4),
            f"{BLOCK + 4} channels are no multiple of {BLOCK}",
        ),
        (
            "Concat",
            (f"{BRANCH} m = Concat<axis = 2>(a, b)", f"float[{WIDE},8,3,3] other"),
            "joined along dimension 2",
        ),
        (
            "Concat",
            ("s = Sin(x) m = Concat<axis = 1>(a, s)", "", WIDE, WIDE + 8),
            "one comes from Sin",
        ),
        (
            "Conv",
            ("m = Conv<group = 4>(a, other)", f"float[{WIDE},{WIDE // 4},3,3] other"),
            f"grouped, {WIDE // 4} to {WIDE // 4} channels a group are no multiples of {BLOCK}",
        ),
    ],
)
def test_what_falls_out_says_why(kind, arguments, reason):
    reasons = {finding.op_type: finding.reason for finding in between(*arguments).findings}
    assert reason in reasons[kind]
    assert kind in reasons["ReorderOutput"]


@pytest.mark.parametrize(
    "arguments",
    [
        (f"m = {AVERAGE}, ceil_mode = 1>(a)",),
        (f"m = {AVERAGE}, count_include_pad = 1>(a)",),
        (resized("linear", "half_pixel"), RESIZE),
        (resized("linear", "align_corners"), RESIZE),
        (resized("nearest", "asymmetric", FLOOR), RESIZE),
        (f"{BRANCH} m = Concat<axis = 1>(a, b)", f"float[{BLOCK},8,3,3] other", WIDE, WIDE + BLOCK),
        ("m = Conv<group = 2>(a, other)", f"float[{WIDE},{BLOCK},3,3] other"),
    ],
)
def test_what_stays_inside_finds_nothing(arguments):
    graph = between(*arguments)
    assert [finding for finding in graph.findings if finding.op_type != "ReorderInput"] == []
    assert graph.count("ReorderOutput") == 1
