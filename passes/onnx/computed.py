"""Numbers that a graph computes from the sizes of its tensors, once some of the tensors are cut.

Sizes that are asked for by Shape follow a cut by themselves. That is right where they are used as sizes, and wrong
where they are computed with, as in 1 / sqrt(channels of a head): there the numbers from before the cut must stay.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.labels import Mask
from graphprune.passes.onnx.analyze import OnnxFrontEnd
from graphprune.passes.onnx.contract import add_literal, insert_before
from graphprune.passes.onnx.model import attributes, evaluate

Numbers = NDArray[Any]
Sizes = Callable[[ir.Value], list[int]]


def is_literal(value: ir.Value) -> bool:
    """Is a value stored in the file, as an initializer or in a Constant node?"""
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


class ComputedNumbers:
    """What computed numbers of an analyzed graph are after a cut, and how to keep those from before it.

    Args:
        front: the analyzed graph.
        cuts: value -> dimension -> which positions stay.
    """

    def __init__(self, front: OnnxFrontEnd, cuts: Mapping[ir.Value, Mapping[int, Mask]]) -> None:
        self.front = front
        self.cuts = cuts
        self.opsets = dict(front.model.graph.opset_imports)
        self._after: dict[ir.Value, Numbers | None] = {}
        self._elsewhere: dict[ir.Value, Numbers | None] = {}
        self._kept: dict[ir.Value, ir.Value] = {}
        self._count = 0

    def after(self, value: ir.Value) -> Numbers | None:
        """The numbers once the tensors whose sizes they come from are cut; None if unknown."""
        return self._from_sizes(value, self._cut_sizes, self._after)

    def expected(self, value: ir.Value) -> Numbers:
        """The numbers from before the cut, without those that are cut themselves."""
        numbers = self.front.numbers[value]
        for dim, kept in self.cuts.get(value, {}).items():
            numbers = np.compress(kept, numbers, axis=dim)
        return numbers

    def keep(self, reader: ir.Node, value: ir.Value, name: str) -> ir.Value:
        """A value that has the expected numbers, to be read by `reader` and those after it.

        1. They come from sizes that are cut alone: a literal.
        2. They come from others as well, which may be free: nodes that compute them from the sizes before the cut.
        """
        if self.is_fixed(value):  # case 1
            return add_literal(self.front.model, name, ir.tensor(np.asarray(self.expected(value), order="C")))
        return self.kept(reader, value, self.cuts.get(value, {}), name)  # case 2

    def is_fixed(self, value: ir.Value) -> bool:
        """Are its numbers, but for what a cut changes, the same whatever the free sizes are?"""
        elsewhere = self._from_sizes(value, self._other_sizes, self._elsewhere)
        return elsewhere is not None and np.array_equal(elsewhere, self.front.numbers[value])

    def kept(self, reader: ir.Node, value: ir.Value, cuts: Mapping[int, Mask], name: str) -> ir.Value:
        """Nodes that compute the numbers from the sizes before the cut; of those, what stays by `cuts`."""
        kept = self._from_before(reader, value)
        for dim, mask in cuts.items():
            at = add_literal(self.front.model, f"{name}_at_{dim}", ir.tensor(np.flatnonzero(mask)))
            kept = self.insert(reader, ir.node("Gather", [kept, at], {"axis": dim})).outputs[0]
            kept.name = f"{name}_{dim}"
        return kept

    # -- evaluation -------------------------------------------------------------------------------------

    def _cut_sizes(self, source: ir.Value) -> list[int]:
        cuts = self.cuts.get(source, {})
        return [int(cuts[d].sum()) if d in cuts else n for d, n in enumerate(self.front.env[source].shape)]

    def _other_sizes(self, source: ir.Value) -> list[int]:
        """Sizes as they might be for another input: what is not cut is larger."""
        cuts = self.cuts.get(source, {})
        return [n if d in cuts else n + 1 for d, n in enumerate(self.front.env[source].shape)]

    def _from_sizes(self, value: ir.Value, sizes: Sizes, memo: dict[ir.Value, Numbers | None]) -> Numbers | None:
        if value not in memo:
            memo[value] = self._evaluated(value, sizes, memo)
        return memo[value]

    def _evaluated(self, value: ir.Value, sizes: Sizes, memo: dict[ir.Value, Numbers | None]) -> Numbers | None:
        known = self.front.numbers.get(value)
        producer = value.producer()
        if known is not None and self.cuts.get(value):
            return self.expected(value)  # numbers of channels: rules see to it that they follow
        if known is None or is_literal(value) or producer is None:
            return known
        if producer.op_type in ("Shape", "Size") and producer.inputs[0] is not None:
            found = np.asarray(sizes(producer.inputs[0]), dtype=np.int64)
            if producer.op_type == "Size":
                return np.asarray(found.prod(), dtype=np.int64)
            options = attributes(producer)
            return found[slice(options.get("start"), options.get("end"))]
        inputs = [None if item is None else self._from_sizes(item, sizes, memo) for item in producer.inputs]
        if any(item is not None and found is None for item, found in zip(producer.inputs, inputs, strict=True)):
            return None
        results = evaluate(producer, inputs, self.opsets)
        return None if results is None else results[list(producer.outputs).index(value)]

    # -- nodes that compute as before ---------------------------------------------------------------------

    def _from_before(self, reader: ir.Node, value: ir.Value) -> ir.Value:
        """A copy of what computes the value, on the sizes before the cut."""
        producer, after = value.producer(), self.after(value)
        if producer is None or (after is not None and np.array_equal(after, self.front.numbers[value])):
            return value
        if value not in self._kept:
            copy = self._copy(reader, producer)
            for old, new in zip(producer.outputs, copy.outputs, strict=True):
                new.name, new.shape, new.type = f"{old.name}_before", old.shape, old.type
                self._kept[old] = new
        return self._kept[value]

    def _copy(self, reader: ir.Node, producer: ir.Node) -> ir.Node:
        source = producer.inputs[0]
        if producer.op_type == "Shape" and source is not None:
            return self._sizes_before(reader, source, attributes(producer))
        if producer.op_type == "Size" and source is not None:
            sizes = self._sizes_before(reader, source, {}).outputs[0]
            sizes.name = f"{producer.outputs[0].name}_sizes_before"
            return self.insert(reader, ir.node("ReduceProd", [sizes], {"keepdims": 0}))
        inputs = [None if item is None else self._from_before(reader, item) for item in producer.inputs]
        given = [ir.Attr(a.name, a.type, a.value) for a in producer.attributes.values()]
        outputs = len(producer.outputs)
        return self.insert(reader, ir.Node(producer.domain, producer.op_type, inputs, given, num_outputs=outputs))

    def _sizes_before(self, reader: ir.Node, source: ir.Value, options: Mapping[str, Any]) -> ir.Node:
        """The sizes of a tensor with those that are cut as they were; free ones stay free."""
        part = slice(options.get("start"), options.get("end"))
        before = np.asarray(self.front.env[source].shape, dtype=np.int64)[part]
        same = before == np.asarray(self._cut_sizes(source), dtype=np.int64)[part]
        sizes = self.insert(reader, ir.node("Shape", [source], options)).outputs[0]
        self._count += 1
        sizes.name = f"{source.name}_sizes_{self._count}"
        literals = [
            add_literal(self.front.model, f"{source.name}_sizes_{name}", ir.tensor(array))
            for name, array in (("free", same), ("before", before))
        ]
        return self.insert(reader, ir.node("Where", [literals[0], sizes, literals[1]]))

    def insert(self, reader: ir.Node, node: ir.Node) -> ir.Node:
        """The node, put in front of one that reads its result."""
        insert_before(reader, node)
        return node
