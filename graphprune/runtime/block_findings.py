"""What falls out of onnxruntime's layout in blocks of channels, and why.

Convolutions outside are computed by im2col in the plain layout, with a reordering before and after. Source of the
rules: onnxruntime, `core/optimizer/nchwc_transformer.cc` and `core/mlas/lib/snchwc.cpp`; each was seen in 1.32.0.
"""

from collections.abc import Iterator, Mapping

import onnx

from graphprune.runtime.machine import machine_facts
from graphprune.runtime.optimized_nodes import BLOCKED, CONVOLUTIONS, Finding, GraphIndex, OptimizedNode, number, word

__all__ = ["block_findings"]

_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_PLAIN = frozenset({*_POOLS, "Add", "Concat", "Resize", "Upsample"})
#: Ways to place the pixels of a Resize for which there are kernels, by its mode.
_PLACED = {"nearest": ("asymmetric",), "linear": ("asymmetric", "half_pixel", "align_corners")}


def block_findings(
    graph: onnx.GraphProto, known: Mapping[int, OptimizedNode], literals: Mapping[str, onnx.TensorProto]
) -> Iterator[Finding]:
    """Yield what fell out of the layout in an optimized graph, with reasons.

    Args:
        graph: the optimized graph.
        known: what is known of its nodes, by their identity.
        literals: those of the file, some of which the optimized graph does not hold any more.
    """
    return iter(_Findings(graph, known, literals))


class _Findings:
    def __init__(
        self, graph: onnx.GraphProto, known: Mapping[int, OptimizedNode], literals: Mapping[str, onnx.TensorProto]
    ) -> None:
        self._index, self._known = GraphIndex(graph), known
        self._index.literals = {**literals, **self._index.literals}
        self._block = machine_facts().conv_block

    def __iter__(self) -> Iterator[Finding]:
        for node in self._index.graph.node:
            reason = None
            if node.domain == BLOCKED and node.op_type in _REORDERS:
                reason = self._of_reorder(node)
            elif node.domain != BLOCKED and node.op_type in CONVOLUTIONS:
                reason = self._of_convolution(node)
            elif node.domain != BLOCKED and node.op_type in _PLAIN:
                reason = self._of_plain(node)
            if reason is not None:
                known = self._known[id(node)]
                yield Finding(node.name, known.op_type, known.layer, reason)

    def _of_convolution(self, node: onnx.NodeProto) -> str | None:
        """None for one that is about integers: its weight comes from bytes."""
        maker = self._index.maker(node, 1)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return None
        weight = self._index.sizes(node.input[1])
        if weight is None:
            return "its weight is no constant of the file"
        if len(weight) != 4:
            return f"a convolution over {len(weight) - 2} dimension(s); blocks are for images"
        groups = int(number(node, "group", 1))
        outputs, inputs = weight[0], weight[1]
        if groups == 1:
            if inputs >= self._block and inputs % 4:
                return f"{inputs} input channels are no multiple of 4"
            return "its type or an attribute has no blocked kernel"
        if inputs == 1 and outputs == groups:
            return f"depthwise, {outputs} channels are no multiple of 4" if outputs % 4 else "no blocked kernel"
        each = outputs // groups
        if inputs % self._block or each % self._block:
            return f"grouped, {inputs} to {each} channels a group are no multiples of {self._block}"
        return "grouped: its type or an attribute has no blocked kernel"

    def _of_plain(self, node: onnx.NodeProto) -> str | None:
        """Of what has a blocked value before it, which had to be reordered for it."""
        widths = {name: width for name in node.input if (width := self._width(name)) is not None}
        if not widths:
            return None
        if node.op_type == "Add":
            return self._of_addition(node, widths)
        odd = sorted({width for width in widths.values() if width % self._block})
        if odd:
            which = ", ".join(map(str, odd))
            return f"{which} channels are no multiple of {self._block}"
        if node.op_type == "Concat":
            return self._of_concatenation(node, widths)
        if node.op_type == "Resize":
            return self._of_resize(node)
        if node.op_type == "AveragePool" and number(node, "ceil_mode", 0) and number(node, "count_include_pad", 0):
            return "ceil_mode together with count_include_pad has no blocked kernel"
        return "its type or an attribute has no blocked kernel"

    def _of_addition(self, node: onnx.NodeProto, widths: Mapping[str, int]) -> str:
        others = [name for name in node.input if name not in widths]
        makers = {self._index.makers[name].op_type for name in others if name in self._index.makers}
        if makers:
            return f"not fused: its other input comes from {', '.join(sorted(makers))}, which has no blocks"
        return "not fused: the sizes of its inputs are not known to be equal"

    def _of_concatenation(self, node: onnx.NodeProto, widths: Mapping[str, int]) -> str:
        axis = int(number(node, "axis", 1))
        if axis not in (1, -3):
            return f"joined along dimension {axis}: blocks are joined along the channels alone"
        others = [name for name in node.input if name not in widths]
        makers = sorted({self._index.makers[n].op_type if n in self._index.makers else "the input" for n in others})
        return (
            f"not all of its inputs are in blocks: one comes from {', '.join(makers)}"
            if makers
            else "no blocked kernel"
        )

    def _of_resize(self, node: onnx.NodeProto) -> str:
        mode = word(node, "mode", "nearest")
        placed = word(node, "coordinate_transformation_mode", "half_pixel")
        if placed not in _PLACED.get(mode, ()):
            return f"a Resize by {mode} with {placed} has no blocked kernel"
        if mode == "nearest" and (rounding := word(node, "nearest_mode", "round_prefer_floor")) != "floor":
            return f"a Resize by nearest that rounds by {rounding} has no blocked kernel, floor has one"
        return "a Resize by what is no whole number of times has no blocked kernel"

    def _of_reorder(self, node: onnx.NodeProto) -> str | None:
        """None for the one before the head, which every network has."""
        if node.op_type == "ReorderInput":
            maker = self._index.maker(node, 0)
            return f"into blocks, as {maker.op_type if maker is not None else 'the input'} gives none"
        readers = self._index.readers.get(node.output[0], [])
        if not readers or not self._leads_to_blocks(node.output[0]):
            return None
        return f"out of blocks, for {', '.join(sorted({reader.op_type for reader in readers}))}"

    def _width(self, name: str) -> int | None:
        """Channels of a value that was brought out of blocks; None for others."""
        maker = self._index.makers.get(name)
        if maker is None or maker.op_type != "ReorderOutput":
            return None
        return int(number(maker, "channels", 0))

    def _leads_to_blocks(self, name: str) -> bool:
        """Whether a convolution comes after a value."""
        queue, seen = [name], {name}
        while queue:
            for reader in self._index.readers.get(queue.pop(), []):
                if reader.op_type in CONVOLUTIONS:
                    return True
                for output in reader.output:
                    if output not in seen:
                        seen.add(output)
                        queue.append(output)
        return False
