"""ONNX operators whose spelling changed between opsets, and literals in all the ways that files have them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from builder import FLOAT, Builder
from onnx import helper, numpy_helper

Sizes = tuple[int, int, int]

#: Opsets that are drawn: the oldest that is read, those at which spellings changed, the newest that onnxruntime runs.
OPSETS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28)


class Dialect(Builder):
    """A builder that writes operators the way its opset spells them.

    Args:
        opset: of the default domain.
        seed: of all numbers.
        spatial: whether height and width of the input are free sizes too.
    """

    def __init__(self, opset: int, seed: int, spatial: bool = False) -> None:
        super().__init__(opset, seed)
        self.spatial = spatial
        self.stored: dict[tuple[int, ...], list[str]] = {}

    @property
    def quantizes(self) -> bool:
        """Whether the opset has QuantizeLinear, and onnxruntime the opset's."""
        return 10 <= self.opset <= 27

    # -- literals ---------------------------------------------------------------------------------

    def numbers(self, array: Any, number: int = 0) -> str:
        """A literal: an initializer, or the result of a Constant node."""
        array = np.asarray(array)
        if number % 3 == 1:
            return self.call("Constant", value=numpy_helper.from_array(array))
        return self.literal(array)

    def ints(self, *values: int, number: int = 0) -> str:
        """A vector of sizes, axes or indices."""
        return self.numbers(np.array(values, np.int64), number)

    def kernel(self, number: int, *shape: int) -> str:
        """A weight: plain, one that another layer has too, or behind Transpose, Cast, Identity or a dequantization."""
        kind = ("plain", "plain", "shared", "transposed", "cast", "identity", "constant", "quantized")[number % 8]
        if kind == "shared" and self.stored.get(shape):
            known = self.stored[shape]
            return known[number // 8 % len(known)]
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        array = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        if kind == "transposed":
            order = list(range(len(shape)))[::-1]
            return self.call("Transpose", self.literal(array.transpose(order)), perm=order)
        if kind == "cast":
            return self.call("Cast", self.literal(array.astype(np.float64)), to=FLOAT)
        if kind == "identity":
            return self.call("Identity", self.literal(array))
        if kind == "constant":
            return self.call("Constant", value=numpy_helper.from_array(array))
        if kind == "quantized" and self.quantizes:
            return self.quantized_kernel(number // 8, array)
        name = self.literal(array)
        self.stored.setdefault(shape, []).append(name)
        return name

    def quantized_kernel(self, number: int, array: np.ndarray) -> str:
        """A weight in 8 bits, with one scale or one for each output channel."""
        by_channel = number % 2 == 1 and self.opset >= 13
        unsigned = number // 2 % 2 == 1
        sizes = (array.shape[0],) if by_channel else ()
        kind, point, low, high = (np.uint8, 128, 0, 255) if unsigned else (np.int8, 0, -127, 127)
        integers = np.clip(np.round(array / np.abs(array).max() * 100) + point, low, high).astype(kind)
        scale = self.literal(np.full(sizes, np.abs(array).max() / 100, np.float32))
        axis = {"axis": 0} if by_channel else {}
        return self.call(
            "DequantizeLinear", self.literal(integers), scale, self.literal(np.full(sizes, point, kind)), **axis
        )

    # -- operators --------------------------------------------------------------------------------

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """ReduceSum, ReduceMean, ..."""
        since = 13 if kind == "ReduceSum" else 18
        if self.opset >= since:
            return self.call(kind, x, self.ints(*axes), keepdims=keepdims)
        return self.call(kind, x, axes=list(axes), keepdims=keepdims)

    def squeeze(self, kind: str, x: str, *axes: int) -> str:
        """Squeeze or Unsqueeze."""
        return self.call(kind, x, self.ints(*axes)) if self.opset >= 13 else self.call(kind, x, axes=list(axes))

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1, number: int = 0) -> str:
        """`x[start:end:step]` along an axis."""
        if self.opset < 10:
            assert step == 1
            return self.call("Slice", x, starts=[start], ends=[end], axes=[axis])
        return self.call("Slice", x, *(self.ints(v, number=number) for v in (start, end, axis, step)))

    def split(self, x: str, sizes: Sequence[int], axis: int = 1, number: int = 0) -> list[str]:
        """Parts of these sizes."""
        count = len(sizes)
        if self.opset < 13:
            return self.call("Split", x, outputs=count, axis=axis, split=list(sizes))
        if self.opset >= 18 and len(set(sizes)) == 1 and number % 2:
            return self.call("Split", x, outputs=count, axis=axis, num_outputs=count)
        return self.call("Split", x, self.ints(*sizes, number=number), outputs=count, axis=axis)

    def clip(self, x: str, low: float, high: float) -> str:
        """Limits as attributes, or as scalars."""
        if self.opset < 11:
            return self.call("Clip", x, min=low, max=high)
        return self.call("Clip", x, *(self.literal(np.float32(v)) for v in (low, high)))

    def pad(self, x: str, pads: Sequence[int], value: float = 0.0) -> str:
        """Constant padding of all dimensions."""
        if self.opset < 11:
            return self.call("Pad", x, pads=list(pads), value=value)
        return self.call("Pad", x, self.ints(*pads), self.literal(np.float32(value)))

    def resize(self, x: str, number: int) -> str:
        """Twice the positions."""
        mode = ("nearest", "linear")[number % 2]
        scales = self.numbers(np.array([1, 1, 2, 2], np.float32), number // 2)
        if self.opset < 10:
            return self.call("Upsample", x, scales, mode=mode)
        if self.opset < 11:
            return self.call("Resize", x, scales, mode=mode)
        roi = "" if self.opset >= 13 else self.literal(np.zeros(0, np.float32))
        if number // 4 % 2:
            sizes = self.call("Mul", self.call("Shape", x), self.ints(1, 1, 2, 2))
            none = "" if self.opset >= 13 else self.literal(np.zeros(0, np.float32))
            return self.call("Resize", x, roi, none, sizes, mode=mode)
        return self.call("Resize", x, roi, scales, mode=mode, coordinate_transformation_mode="asymmetric")

    def dim(self, x: str, axis: int, number: int = 0) -> str:
        """One size of a tensor, as a vector of one, in the ways that exporters write it."""
        if number % 3 == 2 and self.opset >= 15:
            return self.call("Shape", x, start=axis, end=axis + 1)
        sizes = self.call("Shape", x)
        if number % 3 == 1:
            return self.slice(sizes, axis, axis + 1, 0)
        return self.squeeze("Unsqueeze", self.call("Gather", sizes, self.numbers(np.array(axis)), axis=0), 0)

    def reshape(self, x: str, target: Sequence[int | str], number: int = 0) -> str:
        """A reshape to numbers and to sizes that the graph computes."""
        if all(isinstance(size, int) for size in target):
            return self.call("Reshape", x, self.ints(*target, number=number))
        parts = [self.ints(size) if isinstance(size, int) else size for size in target]
        return self.call("Reshape", x, self.call("Concat", *parts, axis=0))

    def quantization(self, x: str, number: int) -> str:
        """To 8 bits and back."""
        kind, point = ((np.uint8, 121), (np.int8, 3), (np.int8, 0))[number % 3]
        settings = (self.literal(np.float32(0.04)), self.literal(np.array(point, kind)))
        return self.call("DequantizeLinear", self.call("QuantizeLinear", x, *settings), *settings)

    def body(self, name: str, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
        """The body of If, Loop or Scan; inputs and outputs are (name, type, sizes)."""
        infos = [[helper.make_tensor_value_info(*item) for item in items] for items in (inputs, outputs)]
        return helper.make_graph(nodes, name, *infos)
