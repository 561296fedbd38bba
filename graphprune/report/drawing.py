"""A drawing of a network's coupled channels: layers in order, one color for each set of channels that go together.

Layers that share a strong color lose the same channels there, as those of a residual trunk do; pale is what a layer
has for itself. Lines are the flow of data; the curved ones go around layers.
"""

import colorsys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import networkx as nx
import numpy as np

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.value import Value

_BOX_WIDTH, _BOX_HEIGHT, _ROW, _COLUMN, _MARGIN, _TOP = 210, 22, 34, 300, 30, 70
_ROWS = 24  # layers below one another before a new column starts
_FROZEN = "#d9d9d9"
_LEGEND = "sets of several layers, and those that cannot be removed exactly"


@dataclass(frozen=True)
class _Layer:
    step: int
    name: str
    sizes: str
    sets: tuple[tuple[int, int], ...]  # set, and how many channels of it


def draw_svg(graph: ChannelGraph, title: str = "coupled channels") -> str:
    """An SVG drawing of the layers that carry channels, colored by coupled set.

    Args:
        graph: the channel graph of a torch or an ONNX model.
        title: what stands above the drawing.
    """
    layers = _layers(graph)
    place = {layer.step: divmod(index, _ROWS) for index, layer in enumerate(layers)}
    columns = max((column for column, _ in place.values()), default=0) + 1
    rows = min(_ROWS, max(len(layers), 1))
    drawn = _in_legend(graph, layers)
    width = 2 * _MARGIN + columns * _COLUMN
    legend_top = _TOP + rows * _ROW + 20
    legend_rows = -(-len(drawn) // max(columns, 1))
    height = legend_top + 24 + legend_rows * 20 + _MARGIN
    colors = _colors(layers)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_MARGIN}" y="28" font-size="16">{escape(title)}</text>',
        f'<text x="{_MARGIN}" y="48" fill="#555">{graph.n_groups} groups in {len(graph.sets)} sets. Layers of '
        "one strong color lose the same channels, pale ones lose their own, gray ones keep all. A dashed frame: may go "
        "as a whole.</text>",
    ]
    parts += [_line(place[a], place[b]) for a, b in _edges(graph, layers)]
    parts += [_box(graph, layer, place[layer.step], colors) for layer in layers]
    if drawn:
        parts.append(f'<text x="{_MARGIN}" y="{legend_top}" font-size="13">{_LEGEND}</text>')
    for number, index in enumerate(drawn):
        column, row = divmod(number, max(legend_rows, 1))
        parts.append(_legend(graph, index, colors[index], _MARGIN + column * _COLUMN, legend_top + 18 + row * 20))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _layers(graph: ChannelGraph) -> list[_Layer]:
    found = []
    for number, step in enumerate(graph.flow.steps):
        weight = step.op.inputs.get("weight", step.op.inputs.get("other"))
        if step.rule is None or step.rule.sums is None or not isinstance(weight, Value) or weight.parameter is None:
            continue
        sets: dict[int, int] = {}
        for facet in step.results[0].facets:
            ids = graph.ids_of(facet).ravel()
            owners, first, counts = np.unique(graph.set_of[ids[ids >= 0]], return_index=True, return_counts=True)
            order = np.argsort(first)
            sets.update(zip(owners[order].tolist(), counts[order].tolist(), strict=True))
        name = weight.parameter.removesuffix(".weight")
        sizes = "x".join(map(str, weight.shape))
        found.append(_Layer(number, name, sizes, tuple(sets.items())))
    return found


def _edges(graph: ChannelGraph, layers: list[_Layer]) -> list[tuple[int, int]]:
    """Which layer's result reaches which next layer, other operators left out."""
    flow = graph.flow.graph
    carrying = {layer.step for layer in layers}
    found = []
    for layer in layers:
        seen: set[int] = set()
        pending = list(flow.successors(layer.step))
        while pending:
            step = pending.pop()
            if step in seen:
                continue
            seen.add(step)
            if step in carrying:
                found.append((layer.step, step))
            else:
                pending.extend(flow.successors(step))
    reduced = nx.DiGraph(found)
    # a residual trunk reaches every later layer: of those, draw what does not follow from shorter ways, and skips
    kept = set(nx.transitive_reduction(reduced).edges) if nx.is_directed_acyclic_graph(reduced) else set(found)
    for layer in layers:
        nexts = sorted(b for a, b in found if a == layer.step)
        kept.update((layer.step, b) for b in nexts[:2])
    return sorted(kept)


def _shared(layers: list[_Layer]) -> list[int]:
    """Sets that several of the layers have channels of, in order."""
    held = Counter(index for layer in layers for index, _ in layer.sets)
    return sorted(index for index, number in held.items() if number > 1)


def _in_legend(graph: ChannelGraph, layers: list[_Layer]) -> list[int]:
    """What the boxes alone do not say: sets of several layers, and those whose removal is not exact."""
    drawn = {index for layer in layers for index, _ in layer.sets}
    inexact = (index for index in drawn if not graph.exact[graph.sets[index].groups].all())
    return sorted({*_shared(layers), *inexact})


def _colors(layers: list[_Layer]) -> Mapping[int, str]:
    """Shared sets get strong colors, the more apart the fewer they are; the others pale ones."""
    shared = _shared(layers)
    found = {}
    for index in sorted({index for layer in layers for index, _ in layer.sets}):
        if index in shared:
            # neighbors in steps of the golden ratio where there are too many to tell them apart in order
            turn = shared.index(index) / len(shared) if len(shared) <= 8 else (shared.index(index) * 0.618034) % 1.0
            red, green, blue = colorsys.hls_to_rgb(turn, 0.72, 0.7)
        else:
            red, green, blue = colorsys.hls_to_rgb((index * 0.618034) % 1.0, 0.94, 0.5)
        found[index] = f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
    return found


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    column, row = place
    return _MARGIN + column * _COLUMN, _TOP + row * _ROW


def _box(graph: ChannelGraph, layer: _Layer, place: tuple[int, int], colors: Mapping[int, str]) -> str:
    """Name and sizes on a bar that is divided as the layer's outputs are."""
    x, y = _corner(place)
    fills = [(colors[index], number) for index, number in layer.sets] or [(_FROZEN, 1)]
    total = sum(number for _, number in fills)
    parts, left = [], float(x)
    for fill, number in fills:
        width = _BOX_WIDTH * number / total
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{_BOX_HEIGHT}" fill="{fill}"/>')
        left += width
    whole = bool(layer.sets) and all(graph.sets[index].bypassed for index, _ in layer.sets)
    style = 'fill="none" stroke="#444" rx="2"' + (' stroke-dasharray="5 3"' if whole else "")
    parts.append(f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" {style}/>')
    name = layer.name if len(layer.name) <= 24 else "..." + layer.name[-21:]
    parts.append(f'<text x="{x + 6}" y="{y + 15}">{escape(name)}</text>')
    parts.append(f'<text x="{x + _BOX_WIDTH - 6}" y="{y + 15}" text-anchor="end" fill="#333">{layer.sizes}</text>')
    return "".join(parts)


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x0, y0 = _corner(start)
    x1, y1 = _corner(end)
    style = 'fill="none" stroke="#888"'
    if start[0] == end[0] and end[1] == start[1] + 1:
        middle = x0 + _BOX_WIDTH / 2
        return f'<path d="M{middle} {y0 + _BOX_HEIGHT} L{middle} {y1}" {style}/>'
    if start[0] == end[0]:
        right = x0 + _BOX_WIDTH
        reach = right + min(14 + 4 * (end[1] - start[1]), _COLUMN - _BOX_WIDTH - 10)
        y0, y1 = y0 + _BOX_HEIGHT // 2, y1 + _BOX_HEIGHT // 2
        return f'<path d="M{right} {y0} C{reach} {y0} {reach} {y1} {right} {y1}" {style}/>'
    right = x0 + _BOX_WIDTH
    y0, y1 = y0 + _BOX_HEIGHT // 2, y1 + _BOX_HEIGHT // 2
    return f'<path d="M{right} {y0} C{right + 60} {y0} {x1 - 60} {y1} {x1} {y1}" {style} stroke-dasharray="4 3"/>'


def _legend(graph: ChannelGraph, index: int, color: str, x: int, y: int) -> str:
    group_set = graph.sets[index]
    exact = "" if graph.exact[group_set.groups].all() else ", inexact"
    whole = ", all may go" if group_set.bypassed else ""
    name = group_set.name if len(group_set.name) <= 24 else "..." + group_set.name[-21:]
    text = f"{name}: {len(group_set.groups)} channels{whole}{exact}"
    return (
        f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{color}" stroke="#444"/>'
        f'<text x="{x + 18}" y="{y}">{escape(text)}</text>'
    )
