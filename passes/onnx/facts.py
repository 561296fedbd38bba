"""What an ONNX graph says of sizes and numbers: told by the file, evaluated, inferred by onnx, or given by a rule."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.analysis import Binding, Op, Rule
from graphprune.passes.channels.operators import is_random
from graphprune.passes.channels.value import Value
from graphprune.passes.onnx.model import SMALL, attributes, evaluate, free_name, is_standard, shape_types
from graphprune.passes.onnx.operators import bind
from graphprune.passes.onnx.own import result_types
from graphprune.passes.onnx.sizes import INFERENCE_ERRORS, infer_results, sizes_of

#: All operators of which onnx tells no sizes; their result is as large as what they read.
_SIZED_AS_READ = frozenset({"GroupNormalization", "MeanVarianceNormalization"})

#: What a free size stands for during the analysis: the batch, and any other.
_BATCH, _FREE = 2, 64


class Facts:
    """What is known of the values of a model, as far as it has been walked.

    Attributes:
        model: the model.
        sizes: what free sizes stand for, by name; those that are met are added.
        opsets: version of each domain.
        env: value -> its sizes and channels.
        kinds: value -> its type of numbers, also where the file does not say it.
        numbers: value -> its numbers where they are known and may matter.
        unshaped: values of unknown sizes.
    """

    def __init__(self, model: ir.Model, sizes: dict[str, int]) -> None:
        self.model = model
        self.sizes = sizes
        self.opsets = dict(model.graph.opset_imports)
        self.env: dict[ir.Value, Value] = {}
        self.kinds: dict[ir.Value, ir.DataType] = {}
        self.numbers: dict[ir.Value, NDArray[Any]] = {}
        self.unshaped: set[ir.Value] = set()

    def input_shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Sizes of an input; None for one that is no tensor, or of unknown rank."""
        if value.shape is None or not isinstance(value.type, ir.TensorType):
            return None
        shape: list[int] = []
        for index, dim in enumerate(value.shape):
            if isinstance(dim, int):
                shape.append(dim)
            else:
                shape.append(self.sizes.setdefault(free_name(value, index, dim), _BATCH if index == 0 else _FREE))
        return tuple(shape)

    def evaluated(self, node: ir.Node) -> list[NDArray[Any]] | None:
        """The numbers of a node's results where they follow from known small integers."""
        if node.op_type in ("Shape", "Size") and is_standard(node.domain):
            source = self.env.get(node.inputs[0]) if node.inputs[0] is not None else None
            if source is None or node.inputs[0] in self.unshaped:
                return None
            shape = np.asarray(source.shape, dtype=np.int64)
            if node.op_type == "Size":
                return [np.asarray(shape.prod())]
            options = attributes(node)
            return [shape[slice(options.get("start"), options.get("end"))]]
        known = [value is None or value in self.numbers for value in node.inputs]
        if not node.inputs or not all(known) or is_random(node.op_type):
            return None
        if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            return None
        found = evaluate(node, [None if v is None else self.numbers[v] for v in node.inputs], self.opsets)
        return found if found is not None and all(array.size <= SMALL for array in found) else None

    def shapes(self, node: ir.Node, data: list[NDArray[Any]] | None) -> tuple[tuple[int, ...], ...] | None:
        """Sizes of a node's results, whose numbers are `data` where those are known; None where nothing tells."""
        if data is not None:
            return tuple(tuple(array.shape) for array in data)
        try:
            proto = ir.serde.serialize_node(node)
            types, numbers = {}, {}
            for value in node.inputs:
                known = self.env.get(value) if value is not None else None
                if value is None or value.name is None or known is None:
                    continue
                types[value.name] = shape_types(known.shape, self.kinds.get(value, value.dtype))
                if value in self.numbers:
                    numbers[value.name] = onnx.numpy_helper.from_array(
                        np.asarray(self.numbers[value], order="C"), value.name
                    )
            inferred = infer_results(proto, types, numbers, self.opsets, self.model.ir_version)
        except INFERENCE_ERRORS:
            return self._declared(node) or self._told(node)
        shapes = []
        for value in node.outputs:
            kind = inferred.get(value.name or "")
            if kind is None or not kind.tensor_type.HasField("shape"):
                return self._as_read(node) or self._declared(node)
            if (sizes := sizes_of(kind)) is None:
                return self._declared(node)
            shapes.append(sizes)
            self.kinds[value] = ir.DataType(kind.tensor_type.elem_type)
        return tuple(shapes)

    def _as_read(self, node: ir.Node) -> tuple[tuple[int, ...], ...] | None:
        """Sizes of the first input, where an operator that onnx says nothing of gives just as much."""
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in _SIZED_AS_READ or node.domain not in ("", "ai.onnx") or source is None:
            return None
        if source in self.unshaped or (known := self.env.get(source)) is None:
            return None
        self.kinds[node.outputs[0]] = self.kinds.get(source, source.dtype or ir.DataType.FLOAT)
        return (known.shape,)

    def _told(self, node: ir.Node) -> tuple[tuple[int, ...], ...] | None:
        """Sizes of what an operator gives that onnx does not know: by its rule, or the body of a function."""
        given = [value for value in node.inputs if value is not None]
        if not all(value in self.env for value in given):
            return None
        types = [shape_types(self.env[value].shape, self.kinds.get(value, value.dtype)) for value in given]
        results = result_types(self.model, node, given, types, lambda found: self.bound(node, "", found, ()))
        if results is not None:
            self.kinds.update({value: kind for value, (kind, _) in zip(node.outputs, results, strict=True)})
        return None if results is None else tuple(shape for _, shape in results)

    def _declared(self, node: ir.Node) -> tuple[tuple[int, ...], ...] | None:
        """Sizes written in the file, with free dimensions at what they stand for; None where they are not."""
        shapes = []
        for value in node.outputs:
            if value.shape is None:
                return None
            dims = [dim if isinstance(dim, int) else self.sizes.get(str(dim.value)) for dim in value.shape]
            if any(dim is None for dim in dims):
                return None
            shapes.append(tuple(int(dim) for dim in dims if dim is not None))
        return tuple(shapes)

    def bound(
        self, node: ir.Node, op_name: str, found: tuple[Rule, Binding] | None, shapes: tuple[tuple[int, ...], ...]
    ) -> Op:
        """A node as an operator in the words of its rule, if one was found."""
        values = [None if value is None else self.env.get(value) for value in node.inputs]
        return bind(node, values, found[1] if found else None, shapes, self.opsets, op_name)
