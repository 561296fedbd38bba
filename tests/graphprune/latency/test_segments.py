from collections import Counter

import numpy as np
import onnx_ir as ir
import staircase

from graphprune.latency.segments import read_segments
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.model import load_model
from graphprune.widths import set_widths


def read(tmp_path):
    return read_segments(trace_onnx(staircase.export(tmp_path)), staircase.graph())


def test_convolutions_take_activation_and_residual_add_along_and_equal_ones_are_of_one_kind(tmp_path):
    found = read(tmp_path)
    convolutions = [s for s in found.items if '["Conv"' in s.kind]
    assert len(convolutions) == 5
    kinds = Counter(s.kind for s in convolutions)
    assert sorted(kinds.values()) == [1, 2, 2]  # stem; first and second convolution of both blocks
    closing = next(s for s in convolutions if '["Add"' in s.kind)
    assert '["Relu"' in closing.kind


def test_lengths_are_those_of_the_sets_of_the_torch_graph(tmp_path):
    graph = staircase.graph()
    removed = ~graph.all_kept()
    inner = next(s for s in graph.sets if s.name == "blocks.0.0")
    trunk = next(s for s in graph.sets if s.name == "stem")
    removed[inner.groups[:20]] = True
    removed[trunk.groups[:8]] = True
    widths = set_widths(graph, ~removed)
    lengths = [tuple(axis.length(widths) for axis in s.axes) for s in read(tmp_path).items if '["Conv"' in s.kind]
    assert lengths == [(24.0,), (24.0, 12.0), (12.0, 24.0), (24.0, 32.0), (32.0, 24.0)]


def test_layers_in_another_number_format_are_of_another_kind(tmp_path):
    model = load_model(staircase.export(tmp_path))
    single = read_segments(trace_onnx(model), staircase.graph())
    computed = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.initializers.values(), *model.graph.inputs, *computed):
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16
    half = read_segments(trace_onnx(model), staircase.graph())
    assert [s.name for s in half.items] == [s.name for s in single.items]
    assert not {s.kind for s in half.items} & {s.kind for s in single.items}


def test_times_of_kernels_go_to_the_segment_they_are_named_after_and_layout_changes_to_the_one_before(tmp_path):
    found = read(tmp_path)
    first, second = found.items[0].name, found.items[1].name
    times = found.times(
        [(f"{first}", 1.0), ("ReorderOutput_token_7", 2.0), (f"fused {second}", 4.0), ("ReorderInput_token_9", 8.0)]
    )
    assert times[:2].tolist() == [3.0, 12.0]
    assert times[2:].sum() == 0


def test_a_blocked_convolution_is_named_after_its_result(tmp_path):
    found = read(tmp_path)
    result = next(name for name, index in found.of_name.items() if index == 1 and name != found.items[1].name)
    assert np.flatnonzero(found.times([(f"{result}_nchwc", 1.0)])).tolist() == [1]
