"""ONNX files without their weights in memory: weights are read from where they lie in the file, and streamed out.

An ONNX file is a protobuf message; nearly all of it are the `raw_data` fields of the graph's initializers. Parsed the
usual way they are held two or three times over. Here the message is walked once, each large `raw_data` is replaced
by a reference to its place in the file (what ONNX calls external data), and only the rest is parsed. Writing goes
the other way: protobuf allows a message's fields in any order, so the initializers follow the rest, one at a time.

Source: Protocol Buffers documentation, "Encoding"; field numbers from onnx.proto3.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from graphprune.passes.onnx.contract import is_packed

#: Tensors below this are parsed as usual.
LARGE = 1 << 12
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER = 7, 5  # of ModelProto, of GraphProto
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14  # of TensorProto

#: A literal by its name.
Named = tuple[str, ir.TensorProtocol]

Field = tuple[int, int, int, int, int]
"""Number, wire type, start of the field, start and end of its content."""


class WireError(ValueError):
    """The bytes are no protobuf message."""


def outline(path: str | os.PathLike[str], location: str | None = None) -> bytes:
    """The file's message with large weights replaced by references to the file itself.

    The references say `location`; by default the absolute path, without symbolic links.

    Raises:
        WireError: the bytes are no protobuf message.
    """
    location = location or os.path.realpath(path)
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        parts = []
        for number, kind, start, begin, end in _fields(data, 0, len(data)):
            if (number, kind) == (_GRAPH, _BYTES):
                parts.append(_message(_GRAPH, _outline_graph(data, begin, end, location)))
            else:
                parts.append(data[start:end])
        return b"".join(parts)


def _outline_graph(data: mmap.mmap, begin: int, end: int, location: str) -> bytes:
    parts = []
    for number, kind, start, inner, stop in _fields(data, begin, end):
        if (number, kind) == (_INITIALIZER, _BYTES) and stop - inner >= LARGE:
            parts.append(_message(_INITIALIZER, _outline_tensor(data, inner, stop, location)))
        else:
            parts.append(data[start:stop])
    return b"".join(parts)


def _outline_tensor(data: mmap.mmap, begin: int, end: int, location: str) -> bytes:
    parts, reference = [], b""
    for number, kind, start, inner, stop in _fields(data, begin, end):
        if (number, kind) != (_RAW_DATA, _BYTES) or stop - inner < LARGE:
            parts.append(data[start:stop])
            continue
        place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", inner), ("length", stop - inner)):
            place.external_data.add(key=key, value=str(value))
        reference = place.SerializeToString()
    # Last, because the last of several values counts: some tools write out that the location is the default one.
    return b"".join([*parts, reference])


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[Field]:
    at = begin
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        inner = at
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _BYTES:
            size, inner = _varint(data, at, end)
            at = inner + size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise WireError(f"field type {kind} at byte {start}")
        if at > end:
            raise WireError(f"the field at byte {start} is longer than what holds it")
        yield number, kind, start, inner, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise WireError(f"a number at byte {at} has no end")


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _message(number: int, content: bytes) -> bytes:
    return _prefix(number, len(content)) + content


def _prefix(number: int, size: int) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(size)


def note_types(model: ir.Model) -> None:
    """Leave no value with sizes and without a type of numbers, in place: no file can hold that, onnx_ir warns of it.

    What a Constant gives has the type of its tensor; of other values the sizes are dropped.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.type is None and value.shape is not None:
                held = node.attributes.get("value") if node.op_type == "Constant" else None
                if held is not None and held.type == ir.AttributeType.TENSOR:
                    value.type = ir.TensorType(held.as_tensor().dtype)
                else:
                    value.shape = None


def write(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write a model as one file, all weights inside, of which no more than one at a time is in memory."""
    with _without(model, lambda tensor: True) as named:
        message = ir.to_proto(model)
    content = message.graph.SerializeToString()
    message.ClearField("graph")
    tensors = [tensor for _, tensor in named]
    heads = [_head(name, tensor) for name, tensor in named]
    sizes = [_tensor_size(head, tensor) for head, tensor in zip(heads, tensors, strict=True)]
    total = len(content) + sum(size + len(_prefix(_INITIALIZER, size)) for size in sizes)
    with Path(path).open("wb") as file:
        file.write(message.SerializeToString())
        file.write(_prefix(_GRAPH, total))
        file.write(content)
        for tensor, head, size in zip(tensors, heads, sizes, strict=True):
            file.write(_prefix(_INITIALIZER, size))
            file.write(head)
            if _is_streamed(tensor):
                file.write(_prefix(_RAW_DATA, tensor.nbytes))
                _copy(tensor, file)


@contextmanager
def _without(model: ir.Model, which: Callable[[ir.TensorProtocol], bool]) -> Iterator[list[Named]]:
    """Take some literals out of a model for a while, with their names; it can be written without them."""
    graph = model.graph
    note_types(model)
    stored = dict(graph.initializers)
    held = {name: value.const_value for name, value in stored.items()}
    taken = [(name, tensor) for name, tensor in held.items() if tensor is not None and which(tensor)]
    for name, _ in taken:
        del graph.initializers[name]
    try:
        yield taken
    finally:
        graph.initializers.clear()
        graph.initializers.update(stored)


def without_packed(model: ir.Model) -> AbstractContextManager[list[Named]]:
    """Take literals out of a model for a while that another file would hold at several times their size."""
    return _without(model, is_packed)


def put_in(path: str | os.PathLike[str], literals: Sequence[Named]) -> None:
    """Add literals to a file that has its weights in another, and take out what it says twice: the form of literals."""
    message = onnx.load(path, load_external_data=False)
    graph = message.graph
    for name, tensor in literals:
        graph.initializer.append(ir.to_proto(tensor))
        graph.initializer[-1].name = name
    names = {tensor.name for tensor in graph.initializer}
    told = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(told)
    Path(path).write_bytes(message.SerializeToString())


def _is_streamed(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= LARGE and not is_packed(tensor)


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A tensor's message under the name of its value; without its numbers where they are streamed."""
    if not _is_streamed(tensor):
        if isinstance(tensor, ir.ExternalTensor):  # small, and at home in another file
            tensor = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name, doc_string=tensor.doc_string)
        message = ir.to_proto(tensor)
        message.name = name
        return message.SerializeToString()
    head = onnx.TensorProto(
        name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy(), doc_string=tensor.doc_string
    )
    for key, value in tensor.metadata_props.items():
        head.metadata_props.add(key=key, value=value)
    return head.SerializeToString()


def _tensor_size(head: bytes, tensor: ir.TensorProtocol) -> int:
    streamed = len(_prefix(_RAW_DATA, tensor.nbytes)) + tensor.nbytes if _is_streamed(tensor) else 0
    return len(head) + streamed


def _copy(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    before = file.tell()
    stream = getattr(tensor, "tofile", None)  # not every kind of tensor has it
    if stream is not None:
        stream(file)
    else:
        file.write(tensor.tobytes())
    if file.tell() - before != tensor.nbytes:
        raise ValueError(f"tensor '{tensor.name}' has {file.tell() - before} bytes, its sizes say {tensor.nbytes}")
