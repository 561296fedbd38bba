import itertools

import numpy as np
import staircase

from graphprune.latency.sampling import allocations, lattice
from graphprune.latency.segments import read_segments
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.widths import set_widths


def test_narrow_sets_are_looked_at_in_fours_and_wide_ones_in_blocks():
    assert lattice(16, 8) == [4, 8, 12, 16]
    assert lattice(64, 8) == [4, 8, 12, 16, 24, 32, 40, 48, 56, 64]
    assert lattice(64, 16) == [4, 8, 12, 16, 20, 24, 28, 32, 48, 64]


def test_a_width_that_is_no_multiple_is_kept_as_it_is():
    assert lattice(30, 8) == [4, 8, 12, 16, 24, 30]
    assert lattice(3, 8) == [3]


def test_groups_of_several_channels_are_counted_in_channels():
    assert lattice(16, 8, each=4) == [1, 2, 3, 4, 6, 8, 10, 12, 14, 16]


def test_so_many_at_most():
    found = lattice(2048, 8, most=12)
    assert len(found) <= 13
    assert found[-1] == 2048
    assert all(n % 8 == 0 for n in found)


def test_allocations_begin_with_the_dense_one_repeat_and_drop_branches(tmp_path):
    graph = staircase.graph()
    segments = read_segments(trace_onnx(staircase.export(tmp_path)), graph)
    first = list(itertools.islice(allocations(graph, segments, 8, seed=3), 20))
    second = list(itertools.islice(allocations(graph, segments, 8, seed=3), 20))
    assert first[0].all()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    widths = np.array([set_widths(graph, kept) for kept in first])
    assert {0, 8, 16, 32} <= set(widths.ravel().tolist())
    for kept in first:
        graph.fates(~kept)  # raises where a set is emptied that has no way around it
