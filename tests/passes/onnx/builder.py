"""Writing ONNX models operator by operator, and comparing two of them without the project's own comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, UINT8, INT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8


class Builder:
    """A model under construction; names are the values."""

    def __init__(self, opset: int = 20, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.literals: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.count = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem.lower()}_{self.count}"

    def input(self, shape: Sequence[int | str | None] | None, name: str = "x", dtype: int = FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def literal(self, array: Any, name: str | None = None) -> str:
        name = name or self.fresh("w")
        self.literals.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int, name: str | None = None) -> str:
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.literal((self.rng.standard_normal(shape) * scale).astype(np.float32), name)

    def vector(self, size: int, name: str | None = None) -> str:
        return self.literal((0.5 + self.rng.random(size)).astype(np.float32), name)

    def call(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [self.fresh(kind) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=self.fresh("n"), domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int = 3, name: str | None = None, **attributes: Any
    ) -> str:
        groups = attributes.get("group", 1)
        weight = self.weight(outputs, inputs // groups, kernel, kernel, name=name and f"{name}.weight")
        bias = self.vector(outputs, name and f"{name}.bias")
        return self.call("Conv", x, weight, bias, pads=[kernel // 2] * 4, **attributes)

    def norm(self, x: str, size: int) -> str:
        return self.call("BatchNormalization", x, *(self.vector(size) for _ in range(4)))

    def output(self, name: str, shape: Sequence[int | str | None] | None = None, dtype: int = FLOAT) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def model(self, ir_version: int = 8, **fields: Any) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.literals)
        domains = {node.domain for node in self.nodes if node.domain}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **fields)
        inferred = {
            value.name: value for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        }
        for value in model.graph.output:  # the checker wants outputs to have at least a rank
            if not value.type.tensor_type.HasField("shape"):
                value.CopyFrom(inferred[value.name])
        return model


def shapes(model: onnx.ModelProto | ir.Model) -> dict[str, tuple[int, ...]]:
    """Sizes of the literals by name."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def literal(model: onnx.ModelProto, name: str) -> np.ndarray:
    """A literal, to be changed in place by `zero`."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def zero(model: onnx.ModelProto, name: str, index: Any, value: float = 0) -> None:
    """Set part of a literal to zero (or to its zero point)."""
    array = literal(model, name)
    array[index] = value
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def run(
    model: onnx.ModelProto | ir.Model | Path, feeds: dict[str, np.ndarray], optimize: bool = False
) -> list[np.ndarray]:
    """Outputs in onnxruntime.

    Sums of products of signed and unsigned bytes saturate on processors without VNNI, differently for other channels
    beside each other; with optimization, onnxruntime can be told to avoid it.
    """
    if isinstance(model, Path):
        source: str | bytes = str(model)
    else:
        proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
        source = proto.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest difference relative to the largest value; infinite for other shapes."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        scale = max(float(np.abs(a).max(initial=0)), 1e-6)
        worst = max(worst, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)) / scale)
    return worst


def image(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(dead=(1, 5), opset=18, **fields) -> onnx.ModelProto:
    """Three convolutions; some channels of the first are dead."""
    b = Builder(opset)
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first"))
    x = b.call("Relu", b.conv(x, 8, 8, name="middle"))
    b.output(b.conv(x, 8, 4, name="last"), ("n", 4, 8, 8))
    model = b.model(**fields)
    for name in ("first.weight", "first.bias"):
        zero(model, name, list(dead))
    return model
