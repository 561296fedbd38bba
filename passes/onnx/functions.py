"""Local functions of ONNX files: bodies put where they are called, also where they are written in another opset."""

import onnx
import onnx_ir as ir
from onnx import inliner
from onnx_ir.passes.common import InlinePass

from graphprune.passes.errors import UnsupportedModelError

#: What the conversion of a function to another opset raises.
_FAILURES = (RuntimeError, ValueError, onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError)

#: Operators that onnx's converter brings to a later opset under another meaning (see `passes/onnx/opset.py`).
_MOVED = frozenset({"Resize", "Upsample", "Hardmax"})


def inline_functions(model: ir.Model) -> None:
    """Put the bodies of local functions where they are called, in place; they are in the model's opsets already.

    Functions with a rule of their own stay as they are.
    """
    InlinePass(lambda function: not _has_rule(function))(model)


def _has_rule(function: ir.Function) -> bool:
    from graphprune.passes.channels.rules import TABLE  # a tenth of a second, where there are functions alone

    return TABLE.onnx_rule(f"{function.domain}.{function.name}") is not None


def in_one_opset(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A model whose functions are all in its own opsets: those in which it makes a difference are converted.

    Args:
        model: which is changed.
        name: what messages call it.

    Raises:
        UnsupportedModelError: a function cannot be converted.
    """
    if (changed := _first_changed(model)) is None:
        for function in model.functions:
            _claim(function, model)
        return model
    function, node, version, own = changed
    try:
        if moved := {n.op_type for f in model.functions for n in f.node} & _MOVED:
            raise ValueError(f"onnx converts {', '.join(sorted(moved))} into something else")
        return _converted(model)
    except _FAILURES as error:
        raise UnsupportedModelError(
            f"{name}: its function '{function.domain}.{function.name}' is written in opset {version}, the model in "
            f"{own}, and {node.op_type} is not the same in both; convert them to one opset first"
        ) from error


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions, for who counts; one that cannot be converted is taken as it stands."""
    if not model.functions:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        copy = in_one_opset(copy, "")
    except UnsupportedModelError:
        for function in copy.functions:
            _claim(function, copy)
    return inliner.inline_local_functions(copy) if copy.functions else copy


def _versions(model: onnx.ModelProto) -> dict[str, int]:
    return {entry.domain: entry.version for entry in model.opset_import}


def _first_changed(model: onnx.ModelProto) -> tuple[onnx.FunctionProto, onnx.NodeProto, int, int] | None:
    """The first node of a function that means something else in the model's opset, and both versions."""
    versions = _versions(model)
    for function in model.functions:
        for entry in function.opset_import:
            own = versions.get(entry.domain, entry.version)
            for node in function.node if own != entry.version else ():
                if node.domain == entry.domain and _since(node, entry.version) != _since(node, own):
                    return function, node, entry.version, own
    return None


def _since(node: onnx.NodeProto, version: int) -> int | None:
    """The version of an operator's definition that an opset has; None where nobody knows it."""
    try:
        return onnx.defs.get_schema(node.op_type, version, node.domain).since_version
    except onnx.defs.SchemaError:
        return None


def _claim(function: onnx.FunctionProto, model: onnx.ModelProto) -> None:
    """Say of a function that it is written in the opsets of the model."""
    versions = _versions(model)
    for entry in function.opset_import:
        entry.version = versions.get(entry.domain, entry.version)


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inlined by onnx, which converts functions on the way, and wants to be told the type of every literal."""
    stated = {value.name for value in (*model.graph.value_info, *model.graph.input)}
    added = [tensor for tensor in model.graph.initializer if tensor.name not in stated]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in added
    )
    found = inliner.inline_local_functions(copy, convert_version=True)
    names = {tensor.name for tensor in added}
    left = [value for value in found.graph.value_info if value.name not in names]
    found.graph.ClearField("value_info")
    found.graph.value_info.extend(left)
    return found
