"""Other graphs that compute what a graph computes, up to rounding: what tools make of a file."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def same(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """The file itself."""
    return model


def optimized(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """As onnxruntime writes it: literals folded, operators fused."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[str(rng.choice(list(LEVELS)))]
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "m.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(Path(folder) / "m.onnx")


def rounded(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Every weight off by its last digits."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for tensor in found.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            off = (1 + 1e-7 * rng.uniform(-1, 1, array.shape)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array * off, tensor.name))
    return found


def renamed(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Other names inside, and another order of the nodes."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    kept = {value.name for value in (*found.graph.input, *found.graph.output)}
    inner = [name for node in found.graph.node for name in node.output if name not in kept]
    names = {name: f"v{at}" for at, name in enumerate(inner)}
    nodes = list(found.graph.node)
    done, order = kept | {tensor.name for tensor in found.graph.initializer}, []
    done -= {name for node in nodes for name in node.output}
    while nodes:
        ready = [node for node in nodes if all(not name or name in done for name in node.input)]
        node = ready[int(rng.integers(len(ready)))]
        nodes.remove(node)
        done.update(node.output)
        order.append(node)
    for node in order:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del found.graph.node[:], found.graph.value_info[:]
    found.graph.node.extend(order)
    return found


def reordered(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Concatenations in another order, put right again behind."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    sizes = _sizes(model)
    nodes = []
    for node in found.graph.node:
        nodes.append(node)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        widths = [sizes.get(name, ())[axis : axis + 1] for name in node.input] if node.op_type == "Concat" else []
        if not widths or not all(width and isinstance(width[0], int) for width in widths):
            continue
        places = np.split(np.arange(sum(w[0] for w in widths)), np.cumsum([w[0] for w in widths])[:-1])
        order = rng.permutation(len(widths))
        back = np.argsort(np.concatenate([places[at] for at in order]))
        inputs = [node.input[at] for at in order]
        del node.input[:]
        node.input.extend(inputs)
        indices, out = f"{node.output[0]}_back", node.output[0]
        node.output[0] = f"{out}_mixed"
        found.graph.initializer.append(numpy_helper.from_array(back, indices))
        nodes.append(helper.make_node("Gather", [f"{out}_mixed", indices], [out], axis=axis))
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del found.graph.node[:], found.graph.value_info[:]
    found.graph.node.extend(kept)
    return found


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }


def permuted(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """The channels of the first convolution in another order: sums in another order behind it."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in found.graph.initializer}
    first = next(node for node in found.graph.node if node.op_type == "Conv")
    order = rng.permutation(stored[first.input[1]].dims[0])

    def put(name: str, axis: int) -> None:
        array = numpy_helper.to_array(stored[name]).take(order, axis=axis)
        stored[name].CopyFrom(numpy_helper.from_array(array, name))

    for name in first.input[1:3]:
        put(name, 0)
    carries, done = {first.output[0]}, set()
    for node in found.graph.node:
        if not carries & set(node.input) or node is first:
            continue
        if node.op_type == "Conv":
            if node.input[1] not in done:
                put(node.input[1], 1)
                done.add(node.input[1])
            continue
        if node.op_type == "BatchNormalization":
            for name in node.input[1:]:
                put(name, 0)
        carries.update(node.output)
    return found


def scaled(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """The weights of the first convolution times a number, and those that read it divided: where Relu lies between."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in found.graph.initializer}
    nodes = list(found.graph.node)
    first = next(node for node in nodes if node.op_type == "Conv")
    readers = [node for node in nodes if first.output[0] in node.input]
    behind = [node for node in nodes if readers and readers[0].output[0] in node.input]
    if [node.op_type for node in readers] != ["Relu"] or {node.op_type for node in behind} != {"Conv"}:
        return found
    factor = np.float32(rng.uniform(0.5, 2))
    for name, by in [(name, factor) for name in first.input[1:3]] + [(n.input[1], 1 / factor) for n in behind]:
        stored[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored[name]) * np.float32(by), name))
    return found


WAYS: tuple[Callable[[onnx.ModelProto, np.random.Generator], onnx.ModelProto], ...] = (
    *(same, optimized, rounded, renamed, reordered, permuted, scaled),
)
