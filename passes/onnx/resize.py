"""Write a Resize that names its axes as one of all axes: onnxruntime's int8 layouts take it for such a one.

    Resize(x, scales, axes)  =  Resize(x, ones with `scales` at `axes`)
    Resize(x, sizes, axes)   =  Resize(x, the sizes of x with `sizes` at `axes`)

Where onnxruntime moves a Transpose past a Resize, it permutes `scales` and `sizes` and does not look at `axes`: the
file cannot be loaded, or not be run. Source: ONNX spec, Resize, from opset 18; onnxruntime,
`core/optimizer/transpose_optimization`.
"""

import numpy as np
import onnx_ir as ir

from graphprune.passes.onnx.contract import NodePass, add_literal

__all__ = ["ResizeAllAxesPass"]

_SCALES, _SIZES = 2, 3


class ResizeAllAxesPass(NodePass):
    """Remove the attribute `axes` of Resize nodes.

    Cases:
        1. Sizes or scales for some axes: they are put among those of all.
        2. With a region of interest, or sizes that keep the aspect ratio of these axes alone: it stays.
    """

    kinds = frozenset({"Resize"})

    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:  # noqa: D102
        return "axes" in node.attributes and _name_all(model, node)


def _name_all(model: ir.Model, node: ir.Node) -> bool:
    inputs = dict(enumerate(node.inputs))
    source, given = inputs[0], {at: inputs.get(at) for at in (_SIZES, _SCALES)}  # beside sizes, scales are empty
    mode = node.attributes.get("coordinate_transformation_mode")
    policy = node.attributes.get("keep_aspect_ratio_policy")
    has_region = mode is not None and mode.as_string() == "tf_crop_and_resize"
    is_stretched = policy is None or policy.as_string() == "stretch"
    at, some = next(((at, value) for at, value in given.items() if value is not None), (0, None))
    if source is None or some is None or has_region or not is_stretched:
        return False  # case 2
    name = node.outputs[0].name

    def inserted(kind: str, operands: list[ir.Value], what: str, **attributes: ir.TensorProtocol) -> ir.Value:
        new = ir.node(kind, operands, attributes, name=f"{name}_{what}_node")
        new.outputs[0].name = f"{name}_{what}"
        model.graph.insert_before(node, new)
        return new.outputs[0]

    every = inserted("Shape", [source], "sizes_before")
    if at == _SCALES:
        rank = inserted("Shape", [every], "rank")
        every = inserted("ConstantOfShape", [rank], "ones", value=ir.tensor(np.ones(1, np.float32)))
    axes = np.asarray(node.attributes.pop("axes").as_ints(), dtype=np.int64)
    where = add_literal(model, f"{name}_axes", ir.tensor(axes))
    node.replace_input_with(at, inserted("ScatterElements", [every, where, some], "sizes_after"))
    return True
