"""Files with something wrong in them: bytes, or the message that they hold."""

from collections.abc import Callable

import numpy as np
import onnx

Rng = np.random.Generator


def _truncated(content: bytes, rng: Rng) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def _flipped(content: bytes, rng: Rng) -> bytes:
    array = np.frombuffer(content, np.uint8).copy()
    for _ in range(int(rng.integers(1, 9))):
        array[rng.integers(0, len(array))] ^= np.uint8(1 << int(rng.integers(0, 8)))
    return array.tobytes()


def _flipped_at_the_head(content: bytes, rng: Rng) -> bytes:
    """Where names, types and lengths stand rather than weights."""
    head = min(len(content), 400)
    return _flipped(content[:head], rng) + content[head:]


def _swapped_bytes(content: bytes, rng: Rng) -> bytes:
    """Two stretches in each other's place."""
    size = int(rng.integers(1, max(2, len(content) // 8)))
    first, second = sorted(int(v) for v in rng.integers(0, max(1, len(content) - size), 2))
    if second < first + size:
        return content[first:] + content[:first]
    a, b = content[first : first + size], content[second : second + size]
    return content[:first] + b + content[first + size : second] + a + content[second + size :]


def _doubled(content: bytes, rng: Rng) -> bytes:
    return content + content[int(rng.integers(0, len(content))) :]


def _noise(content: bytes, rng: Rng) -> bytes:
    return rng.integers(0, 256, int(rng.integers(0, 300)), dtype=np.uint8).tobytes()


def _one(items: object, rng: Rng) -> object:
    items = list(items)  # type: ignore[call-overload]
    return items[int(rng.integers(0, len(items)))]


def _wrong_dims(model: onnx.ModelProto, rng: Rng) -> None:
    tensor = _one(model.graph.initializer, rng)
    dims = list(tensor.dims)
    if dims:
        at = int(rng.integers(0, len(dims)))
        dims[at] = int(_one((0, -1, dims[at] + 1, dims[at] * 2, 2**40, dims[at] - 1), rng))
    else:
        dims = [2]
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _other_sizes(model: onnx.ModelProto, rng: Rng) -> None:
    """A weight of other sizes, whose numbers fit them."""
    tensor = _one([t for t in model.graph.initializer if t.dims], rng)
    array = onnx.numpy_helper.to_array(tensor)
    dim = int(rng.integers(0, array.ndim))
    kept = np.arange(max(0, array.shape[dim] - int(rng.integers(1, 3))))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.take(array, kept, axis=dim), tensor.name))


def _wrong_type(model: onnx.ModelProto, rng: Rng) -> None:
    _one(model.graph.initializer, rng).data_type = int(rng.integers(0, 40))


def _missing_initializer(model: onnx.ModelProto, rng: Rng) -> None:
    del model.graph.initializer[int(rng.integers(0, len(model.graph.initializer)))]


def _missing_node(model: onnx.ModelProto, rng: Rng) -> None:
    del model.graph.node[int(rng.integers(0, len(model.graph.node)))]


def _cycle(model: onnx.ModelProto, rng: Rng) -> None:
    nodes = model.graph.node
    at = int(rng.integers(0, len(nodes)))
    _one([n for n in list(nodes)[: at + 1] if n.input], rng).input[0] = nodes[at].output[0]


def _reordered(model: onnx.ModelProto, rng: Rng) -> None:
    nodes = [model.graph.node[i] for i in rng.permutation(len(model.graph.node))]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _swapped_inputs(model: onnx.ModelProto, rng: Rng) -> None:
    node = _one([n for n in model.graph.node if len(n.input) > 1], rng)
    names = list(node.input)
    del node.input[:]
    node.input.extend(names[::-1])


def _same_name(model: onnx.ModelProto, rng: Rng) -> None:
    nodes = list(model.graph.node)
    _one(nodes, rng).output[0] = _one(nodes, rng).output[0]


def _unknown_input(model: onnx.ModelProto, rng: Rng) -> None:
    node = _one([n for n in model.graph.node if n.input], rng)
    node.input[int(rng.integers(0, len(node.input)))] = _one(("nowhere", "", "x"), rng)


def _other_operator(model: onnx.ModelProto, rng: Rng) -> None:
    node = _one(model.graph.node, rng)
    node.op_type = _one(("Conv", "Gemm", "Split", "NoSuchOperator", "", "Concat", "LSTM", "If", "Constant"), rng)


def _other_domain(model: onnx.ModelProto, rng: Rng) -> None:
    _one(model.graph.node, rng).domain = "nobody.knows"


def _wrong_attribute(model: onnx.ModelProto, rng: Rng) -> None:
    attributes = [a for n in model.graph.node for a in n.attribute]
    if not attributes:
        return
    attribute = _one(attributes, rng)
    attribute.i = int(_one((-1, 0, 99, 2**40), rng))
    if attribute.ints:
        attribute.ints[0] = int(_one((-7, 0, 99, 2**40), rng))
    if rng.random() < 0.3:
        attribute.type = int(rng.integers(0, 15))


def _no_attributes(model: onnx.ModelProto, rng: Rng) -> None:
    del _one(model.graph.node, rng).attribute[:]


def _lost_data(model: onnx.ModelProto, rng: Rng) -> None:
    tensor = _one(model.graph.initializer, rng)
    tensor.ClearField("raw_data")
    if rng.random() < 0.5:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = _one(("nowhere.data", "../given.onnx", "/etc/hostname", "", "corrupted.onnx"), rng)
        tensor.external_data.add(key="location", value=where)


def _wrong_opset(model: onnx.ModelProto, rng: Rng) -> None:
    if rng.random() < 0.3:
        del model.opset_import[:]
    else:
        model.opset_import[0].version = int(_one((0, -1, 1, 5, 99, 2**40), rng))


def _wrong_output(model: onnx.ModelProto, rng: Rng) -> None:
    if rng.random() < 0.4:
        del model.graph.output[:]
    else:
        model.graph.output[0].name = _one(("nowhere", "", "x", model.graph.initializer[0].name), rng)


def _wrong_input(model: onnx.ModelProto, rng: Rng) -> None:
    value = model.graph.input[0]
    kind = int(rng.integers(0, 4))
    if kind == 0:
        value.type.tensor_type.elem_type = int(rng.integers(0, 30))
    elif kind == 1:
        value.type.tensor_type.shape.dim[1].dim_value = int(_one((0, -3, 5, 2**40), rng))
    elif kind == 2:
        value.ClearField("type")
    else:
        del value.type.tensor_type.shape.dim[2:]


_BYTES: tuple[Callable[[bytes, Rng], bytes], ...] = (
    *(_truncated, _flipped, _flipped_at_the_head, _swapped_bytes, _doubled, _noise),
)
_FIELDS: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    *(_wrong_dims, _other_sizes, _wrong_type, _missing_initializer, _missing_node, _cycle, _reordered),
    *(_swapped_inputs, _same_name, _unknown_input, _other_operator, _other_domain, _wrong_attribute),
    *(_no_attributes, _lost_data, _wrong_opset, _wrong_output, _wrong_input),
)
KINDS = tuple(change.__name__.strip("_") for change in (*_BYTES, *_FIELDS))


def corrupted(model: onnx.ModelProto, seed: int) -> tuple[str, bytes]:
    """The kind of damage (all in turn), and the file that has it."""
    rng = np.random.default_rng(seed)
    at = seed % len(KINDS)
    if at < len(_BYTES):
        return KINDS[at], _BYTES[at](model.SerializeToString(), rng)
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model)
    _FIELDS[at - len(_BYTES)](damaged, rng)
    return KINDS[at], damaged.SerializeToString()
