import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.reconstruction.batches import ImageBatches, _passes, _peak, bytes_an_image, kept_nodes, small_enough
from graphprune.reconstruction.reconstruct import Reconstruction
from tests.graphprune.reconstruction.test_reconstruct import Mixed, pictures, plan_of, source


class Written(nn.Module):
    """Activations write into their inputs, which other layers read before and afterwards, directly and in part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.a(x)
        before = self.d(x)
        F.hardswish(x, inplace=True)
        y = F.hardswish(self.b(x), inplace=True)
        y += x
        F.relu_(y[:, :4])
        return self.head((self.c(y) + before).mean((2, 3)))


@pytest.mark.parametrize("network", [lambda: Mixed(4, True, 0), Written])
def test_what_is_computed_again_is_what_was_kept(network):
    graph, plan = plan_of(network().eval(), 0.4)
    states = []
    for limit in (np.inf, 700, 0):
        seen = Reconstruction(graph, source())
        seen._limit = limit
        seen.look(moments=False)
        states.append(seen.fit(plan)[0])
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())


def test_the_limit_is_the_largest_that_fits():
    graph = gp.trace(Mixed(4, True, 0).eval(), (torch.from_numpy(pictures(4)),)).front_end.module.graph
    sizes = bytes_an_image(graph)
    largest = max(sizes.values())
    assert largest == 8 * 8 * 8 * 4 * 1.5 == sizes[next(n for n in sizes if n.name == "conv2d_3")]  # 12 channels
    whole, room = largest, 160 * _peak(graph, sizes, largest)
    assert small_enough(graph, room, 160, frozenset()) == (whole, 160)
    less, images = small_enough(graph, room - 1, 160, frozenset())
    assert (less < whole, images) == (True, 160)
    assert _peak(graph, sizes, less) < _peak(graph, sizes, whole)
    assert not any(sizes[node] > less for node in kept_nodes(graph, sizes, less))


def test_what_would_take_too_many_passes_is_not_asked_for(monkeypatch):
    graph = gp.trace(Mixed(4, True, 0).eval(), (torch.from_numpy(pictures(4)),)).front_end.module.graph
    sizes = bytes_an_image(graph)
    asked = frozenset(node.name for node in sizes)
    whole = max(sizes.values())
    assert _passes(graph, sizes, whole, asked) == pytest.approx(1, abs=0.15)  # images are read more than once
    assert _passes(graph, sizes, 0, asked) > 5
    room = 100 * _peak(graph, sizes, whole)
    assert small_enough(graph, room, 160, asked)[1] == 160
    monkeypatch.setattr("graphprune.reconstruction.batches._MOST_PASSES", 1.0)
    assert small_enough(graph, room, 160, asked) == (whole, 2)


def test_batches_are_the_images_in_order_and_none_holds_both_kinds():
    images = source(23)
    batches = ImageBatches(images, 17, 5)
    assert batches.sizes() == [5, 5, 5, 2, 5, 1]
    assert batches.held == 4
    assert torch.equal(torch.cat(list(batches)), torch.from_numpy(images.batch(slice(0, None))))


def test_memory_for_few_images_takes_few_and_says_so(monkeypatch, caplog):
    graph, _ = plan_of(Written().eval(), 0.4)
    monkeypatch.setattr("graphprune.reconstruction.reconstruct._MOST_BYTES", 40_000)
    seen = Reconstruction(graph, source())
    assert 2 <= len(seen.source) < 160
    assert "memory is kept for the results of no more" in caplog.text


def test_what_reads_before_and_after_a_write_is_kept_with_what_is_written():
    graph = gp.trace(Written().eval(), (torch.from_numpy(pictures(4)),)).front_end.module.graph
    kept = {node.name for node in kept_nodes(graph, bytes_an_image(graph), 0)}
    assert {"conv2d", "conv2d_1", "hardswish_", "conv2d_2", "add_"} <= kept  # conv2d_1 reads what hardswish_ writes to
    assert "add" not in kept
