"""Cutting an analyzed ONNX graph in place: weights, arguments that repeat sizes, noted shapes."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.analysis import Cut, Recount
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Value
from graphprune.passes.onnx.analyze import OnnxFrontEnd
from graphprune.passes.onnx.computed import ComputedNumbers, is_literal
from graphprune.passes.onnx.contract import add_literal, in_form_of, insert_before, literal, set_literal
from graphprune.passes.onnx.fold import fold_branches
from graphprune.passes.onnx.quantized import is_setting, stored, zero_of


def mask_groups(graph: ChannelGraph, removed: Mask) -> None:
    """Set the weights of the removed groups to zero and keep all shapes; changes the analyzed model."""
    for value, gone in _hit(graph, removed):
        if is_setting(value):
            continue
        array = stored(value).copy()
        zero = np.broadcast_to(np.asarray(zero_of(value), dtype=array.dtype), array.shape)
        for dim, mask in gone.items():
            np.moveaxis(array, dim, 0)[mask] = np.moveaxis(zero, dim, 0)[mask]
        set_literal(value, array)


def remove_groups(graph: ChannelGraph, removed: Mask) -> None:
    """Remove the groups from the analyzed model."""
    _Cutter(graph, removed).run()


def _hit(graph: ChannelGraph, removed: Mask) -> Iterator[tuple[ir.Value, dict[int, Mask]]]:
    """Constants that lose something, with the indices that go, by dimension."""
    front: OnnxFrontEnd = graph.front_end
    for name, value in front.names.items():
        gone: dict[int, Mask] = {}
        for dim in range(len(graph.shapes[name])):
            ids = graph.axes.get((name, dim))
            mask = None if ids is None else (ids >= 0) & removed[ids]
            if mask is not None and mask.any():
                gone[dim] = mask
        if gone:
            yield value, gone


def _kept(array: NDArray[Any], kept: Mask, axis: int) -> NDArray[Any]:
    """As `numpy.compress`. Bytes are moved: numbers in a file stand at odd places, and numpy is slow at those."""
    if array.size == 0:
        return np.compress(kept, array, axis=axis)
    before, size, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    rows = array.reshape(-1).view(np.uint8).reshape(prod(before), size, -1)
    found = rows.take(np.flatnonzero(kept), axis=1)
    return found.reshape(-1).view(array.dtype).reshape(*before, int(kept.sum()), *after)


#: Inputs by which a rule's operator is told sizes and places: they follow the cut, by themselves or by `resize`.
_SIZES = frozenset(
    "shape sizes split starts ends axes steps pads repeats axis scales output_shape lengths index".split()
)


def _attribute(name: str, value: Any, old: ir.Attr | None) -> ir.Attr:
    """None inside a list keeps the old entry."""
    if isinstance(value, list):
        was = list(old.value) if old is not None and None in value else value
        return ir.AttrInt64s(name, [int(w if new is None else new) for w, new in zip(was, value, strict=True)])
    return ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, int(value))


class _Cutter:
    def __init__(self, graph: ChannelGraph, removed: Mask) -> None:
        self.graph = graph
        self.removed = removed
        self.front: OnnxFrontEnd = graph.front_end
        self.cuts = {value: graph.cuts(known, removed) for value, known in self.front.env.items()}
        self.opsets = dict(self.front.model.graph.opset_imports)
        self.computed = ComputedNumbers(self.front, self.cuts)
        self.shared: dict[tuple[ir.Value | None, tuple[int, ...], bytes], ir.Value] = {}

    def run(self) -> None:
        for node in self.front.nodes:
            self._keep_numbers(node)
        for node in self.front.ops:
            self._arguments(node)
        self._take_names()
        for value, gone in _hit(self.graph, self.removed):
            array = stored(value)
            for dim, mask in gone.items():
                array = _kept(array, ~mask, dim)
            set_literal(value, array)
        for value, cuts in self.cuts.items():
            if cuts and value.shape is not None and value.name not in self.front.names:
                sizes = [int(cuts[dim].sum()) if dim in cuts else size for dim, size in enumerate(value.shape)]
                value.shape = ir.Shape(sizes)
        fold_branches(self.graph, self.removed)

    def _arguments(self, node: ir.Node) -> None:
        """Let the rule of the node's operator say what follows the cut, and write it."""
        rule, binding, op = self.front.ops[node]
        if rule.resize is None:
            return
        inputs = {key: self.graph.cuts(v, self.removed) for key, v in op.inputs.items() if isinstance(v, Value)}
        outputs = [self.cuts[value] for value in node.outputs if value in self.cuts]
        changes = rule.resize(op, Cut(inputs, outputs))
        if changes and binding.write is not None:
            changes = binding.write(changes, op.inputs)
        for key, new in changes.items():
            name = binding.names.get(key, key)
            if key in binding.inputs and not self._is_attribute(node, name):
                self._set_input(node, binding.inputs.index(key), new, is_shape=key == "shape")
                node.attributes.pop("num_outputs", None)  # Split: either a number of parts or their sizes
            else:
                node.attributes[name] = _attribute(name, new, node.attributes.get(name))

    def _keep_numbers(self, node: ir.Node) -> None:
        """Sizes that are computed with, as in 1 / sqrt(channels of a head), stay what they were."""
        if all(value in self.front.numbers for value in node.outputs):
            return
        names = self.front.ops[node][1].inputs if node in self.front.ops else ()
        for position, value in enumerate(node.inputs):
            is_size = position < len(names) and names[position] in _SIZES
            if value is None or is_size or is_literal(value) or value not in self.front.numbers:
                continue
            after = self.computed.after(value)
            if after is not None and not np.array_equal(self.computed.expected(value), after):
                name = f"{node.outputs[0].name}_{position}_kept"
                node.replace_input_with(position, self.computed.keep(node, value, name))

    def _is_attribute(self, node: ir.Node, key: str) -> bool:
        version = self.opsets.get(node.domain) or self.opsets.get("", 1)
        try:
            return key in onnx.defs.get_schema(node.op_type, version, node.domain).attributes
        except onnx.defs.SchemaError:  # of another domain
            return key in node.attributes

    def _set_input(self, node: ir.Node, position: int, new: Any, is_shape: bool) -> None:
        """Give an input other numbers. None inside a list keeps the old entry, and so does a size of -1 in a shape.

        1. Numbers that the graph computes are left alone where they follow the cut by themselves.
        2. Of those that do not, only the wrong ones are replaced: others may depend on free sizes.
        3. A literal is replaced as a whole.
        """
        old = node.inputs[position] if position < len(node.inputs) else None
        before = self.front.numbers.get(old) if old is not None else None
        if isinstance(new, Recount):
            if old is not None and not self.computed.is_fixed(old):
                self._recount(node, position, old, new)
                return
            new = new.after
        if before is not None and isinstance(new, list) and (is_shape or None in new):
            rows = before.ravel().tolist()
            free = [item is None or (is_shape and was == -1) for was, item in zip(rows, new, strict=True)]
            new = [was if stays else item for was, item, stays in zip(rows, new, free, strict=True)]
            if new == rows:
                return
        data = np.asarray(new, dtype=np.int64 if before is None else before.dtype)
        found = None if old is None or is_literal(old) else self.computed.after(old)
        if found is not None and np.array_equal(found, data):
            return  # case 1
        value = self._literal(node, position, old, data)
        if old is not None and found is not None and found.shape == data.shape and data.ndim == 1:  # case 2
            value = self._patched(node, old, found == data, value)
        if position >= len(node.inputs):
            node.resize_inputs(position + 1)
        node.replace_input_with(position, value)

    def _literal(self, node: ir.Node, position: int, old: ir.Value | None, data: NDArray[Any]) -> ir.Value:
        """A literal with the numbers that an input of a node becomes.

        1. A literal that the node alone reads changes itself.
        2. What several read is stored once where it becomes the same.
        """
        held = literal(self.front.model, old)
        if old is not None and held is not None and len(old.uses()) == 1 and not old.is_graph_output():
            set_literal(old, data)
            return old
        key = (old, data.shape, data.tobytes())
        if held is not None and key in self.shared:
            return self.shared[key]
        name = f"{node.outputs[0].name}_{position}_slim"
        tensor = ir.tensor(data) if held is None else in_form_of(held, data, name)
        self.shared[key] = add_literal(self.front.model, name, tensor)
        return self.shared[key]

    def _take_names(self) -> None:
        """Let new literals go by the names of those that nobody reads any more."""
        for (old, *_), new in self.shared.items():
            held = self.front.model.graph.initializers
            if old is not None and not old.uses() and held.get(old.name or "") is old and not old.is_graph_output():
                if old.is_graph_input():
                    self.front.model.graph.inputs.remove(old)
                name = old.name
                del held[name or ""]
                new.name = name

    def _recount(self, node: ir.Node, position: int, old: ir.Value, new: Recount) -> None:
        """Count indices that depend on free sizes among what stays.

        What stays repeats itself from sample to sample, so index i becomes (i // period) * left + place[i % period].
        """
        after = self.computed.after(old)
        if after is not None and np.array_equal(after, new.after):
            return
        name, kind = f"{node.outputs[0].name}_{position}", self.front.numbers[old].dtype
        value = self.computed.kept(node, old, new.picked, f"{name}_kept")
        left = new.kept[: new.period]

        def number(array: NDArray[Any], what: str) -> ir.Value:
            return add_literal(self.front.model, f"{name}_{what}", ir.tensor(np.asarray(array, dtype=kind)))

        def insert(kind: str, operands: list[ir.Value], what: str) -> ir.Value:
            made = self.computed.insert(node, ir.node(kind, operands, name=f"{name}_{what}_node")).outputs[0]
            made.name = f"{name}_{what}"
            return made

        period = number(np.asarray(new.period), "period")
        rest = insert("Mod", [value, period], "rest")
        whole = insert("Div", [insert("Sub", [value, rest], "start"), period], "sample")
        start = insert("Mul", [whole, number(np.asarray(left.sum()), "left")], "sample_start")
        place = insert("Gather", [number(np.cumsum(left) - 1, "places"), rest], "place")
        node.replace_input_with(position, insert("Add", [start, place], "slim"))

    def _patched(self, node: ir.Node, old: ir.Value, right: NDArray[Any], fixed: ir.Value) -> ir.Value:
        """`old` where it is right, else `fixed`."""
        mask = add_literal(self.front.model, f"{fixed.name}_computed", ir.tensor(right))
        choice = ir.node("Where", [mask, old, fixed], name=f"{fixed.name}_choice")
        (value,) = choice.outputs
        value.name, value.shape, value.type = f"{fixed.name}_patched", fixed.shape, fixed.type
        insert_before(node, choice)
        return value
