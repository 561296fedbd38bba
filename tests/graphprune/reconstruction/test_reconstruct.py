import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.data import ImageSource, Preprocess
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.outputs import difference, run
from graphprune.reconstruction.reconstruct import Reconstruction
from graphprune.verification.verify import require_equal


class Mixed(nn.Module):
    """Residual, depthwise, concatenated, gated, grouped, transposed and flattened: one of each."""

    def __init__(self, width, biased, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=biased), nn.BatchNorm2d(width)
        self.inner, self.norm1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
        self.outer, self.norm2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=biased), nn.BatchNorm2d(width)
        self.wide = nn.Conv2d(width, 12, 1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, stride=2, groups=12)
        self.gate1, self.gate2 = nn.Linear(12, 6), nn.Linear(6, 12)
        self.left, self.right = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, (3, 1), padding=(1, 0), dilation=1)
        self.grouped = nn.Conv2d(16, 8, 3, padding=1, groups=2, bias=biased)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1)
        self.head = nn.Linear(8 * 16, 5)
        for norm in (self.norm, self.norm1, self.norm2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.outer(F.relu(self.norm1(self.inner(x))))))
        x = F.hardswish(self.depth(F.relu6(self.wide(x))))
        x = x * torch.sigmoid(self.gate2(F.relu(self.gate1(x.mean((2, 3))))))[:, :, None, None]
        x = F.relu(self.grouped(torch.cat([F.relu(self.left(x)), F.silu(self.right(x))], 1)))
        return self.head(F.avg_pool2d(F.relu(self.up(x)), 2).flatten(1))


def pictures(number=160, seed=0, size=8):
    """Smooth, so that channels resemble each other."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.normal(size=(number, 3, 3, 3)).astype(np.float32))
    return F.interpolate(coarse, size=(size, size), mode="bilinear").numpy()


def source(number=160):
    pixels = np.ascontiguousarray(pictures(number).transpose(0, 2, 3, 1))
    return ImageSource(pixels, Preprocess.of((8, 8), 3, mean=(0.0,), std=(1.0,)))


def plan_of(model, ratio, **options):
    graph = gp.trace(model, (torch.from_numpy(pictures(4)),))
    return graph, gp.plan(graph, ratio=ratio, **options)


@given(width=st.integers(3, 6), biased=st.booleans(), ratio=st.sampled_from([0.2, 0.4]), seed=st.integers(0, 99))
@settings(max_examples=2, deadline=None)
def test_slim_is_masked_no_layer_is_worse_than_plain_removal_and_the_whole_is_better(width, biased, ratio, seed):
    model = Mixed(width, biased, seed).eval()
    _, plan = plan_of(model, ratio)
    before = copy.deepcopy(model.state_dict())
    found = gp.reconstruct(model, plan, pictures())
    assert type(found.model) is Mixed
    test = (torch.from_numpy(pictures(32, seed=1)),)
    slimmed, masked, plain, dense = (
        run(m.eval(), test)[0] for m in (found.model, found.masked, gp.mask(model, plan), model)
    )
    assert difference(masked, slimmed) < 1e-4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    fitted = [layer for layer in found.report.layers if layer.outcome in ("fitted", "mapped")]
    assert len(fitted) > 5
    assert all(layer.error <= layer.plain_error for layer in fitted)
    assert (slimmed - dense).square().mean() < 0.8 * (plain - dense).square().mean()


def test_all_kinds_of_layers_are_fitted():
    _, plan = plan_of(Mixed(6, True, 3).eval(), 0.3)
    found = gp.reconstruct(Mixed(6, True, 3).eval(), plan, pictures(300))
    outcome = {layer.layer.removesuffix(".weight"): layer.outcome for layer in found.report.layers}
    assert outcome.pop("stem") == "unchanged"
    assert set(outcome) == {
        "inner",
        "outer",
        "wide",
        "depth",
        "gate1",
        "gate2",
        "left",
        "right",
        "grouped",
        "up",
        "head",
    }
    assert list(outcome.values()).count("plain") <= 2, outcome
    assert "fitted in closed form" in str(found)
    json.dumps(found.report.to_dict())


def test_what_loses_nothing_stays_as_it_is():
    model = Mixed(4, False, 0).eval()
    graph, _ = plan_of(model, 0.3)
    found = gp.reconstruct(model, graph.plan(~graph.all_kept()), pictures())
    inputs = (torch.from_numpy(pictures(16, seed=2)),)
    assert difference(run(model, inputs)[0], run(found.model.eval(), inputs)[0]) < 1e-6
    assert {layer.outcome for layer in found.report.layers} == {"unchanged"}


def test_a_dead_channel_goes_without_a_trace():
    """Every reader is solved again, and has nothing to make up for: the solution is what it was."""
    model = Mixed(5, True, 1).eval()
    with torch.no_grad():
        for tensor in (model.inner.weight, model.norm1.weight, model.norm1.bias):
            tensor[3] = 0
    graph, _ = plan_of(model, 0.3)
    removed = ~graph.all_kept()
    removed[graph.axes["inner.weight", 0][3]] = True
    found = gp.reconstruct(model, graph.plan(removed), pictures(200))
    inputs = (torch.from_numpy(pictures(16, seed=2)),)
    assert difference(run(model, inputs)[0], run(found.model.eval(), inputs)[0]) < 1e-4


def test_the_same_images_give_the_same_weights():
    graph, plan = plan_of(Mixed(4, True, 5).eval(), 0.3)
    found = []
    for _ in range(2):
        seen = Reconstruction(graph, source())
        seen.look(moments=False)
        found.append(seen.fit(plan)[0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_onnx_file_computes_what_the_masked_model_does(tmp_path):
    model = Mixed(5, False, 2).eval()
    _, plan = plan_of(model, 0.3)
    found = gp.reconstruct(model, plan, pictures())
    batch = pictures(8, seed=3)
    gp.export_onnx(found.model.eval(), (torch.from_numpy(batch),), tmp_path / "slim.onnx")
    require_equal(found.masked.eval(), tmp_path / "slim.onnx", batch, labels=("masked", "slim.onnx"))


def test_norms_see_the_statistics_that_they_say():
    """So a network that is trained on begins with what it computes in inference."""
    model = Mixed(6, False, 4).eval()
    _, plan = plan_of(model, 0.3)
    slimmed = gp.reconstruct(model, plan, pictures(400), number=320).model.eval()
    seen = {}
    slimmed.outer.register_forward_hook(lambda module, inputs, output: seen.update(value=output))
    slimmed(torch.from_numpy(pictures(400)))
    torch.testing.assert_close(slimmed.norm2.running_mean, seen["value"].mean((0, 2, 3)), atol=0.05, rtol=0.1)
    torch.testing.assert_close(slimmed.norm2.running_var, seen["value"].var((0, 2, 3)), atol=0.05, rtol=0.2)


def test_few_images_are_said(caplog):
    model = Mixed(4, True, 6).eval()
    _, plan = plan_of(model, 0.3)
    found = gp.reconstruct(model, plan, pictures(60))
    assert "fitted to 30 images" in caplog.text
    assert (found.report.images, found.report.judged) == (30, 30)


def test_drift_of_a_trunk_is_made_up_for_in_the_branches():
    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.down = nn.Conv2d(8, 8, 1, bias=False)
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            x = F.relu(self.stem(x))
            out = self.b(F.relu(self.a(x)))
            return F.relu(out + self.down(x)).mean((2, 3))

    graph = gp.trace(Trunk().eval(), (torch.from_numpy(pictures(4)),))
    seen = Reconstruction(graph, source())
    joins = {layer.weight: layer.join for layer in seen.layers}
    assert joins["b.weight"] is not None  # computed before the other side of the sum, which could have come first
    assert joins["a.weight"] is None


def test_costs_choose_better_channels_than_norms():
    model = Mixed(6, True, 7).eval()
    graph = gp.trace(model, (torch.from_numpy(pictures(4)),))
    inputs = (torch.from_numpy(pictures(64, seed=9)),)
    dense = run(model, inputs)[0]
    error = {}
    for name in ("l2", "reconstruction"):
        plan = gp.plan(graph, importance=name, images=source(), macs=0.6)
        slimmed = gp.reconstruct(model, plan, pictures(260)).model.eval()
        error[name] = float((run(slimmed, inputs)[0] - dense).square().mean())
    assert error["reconstruction"] < error["l2"]


def test_costs_need_images():
    graph = gp.trace(Mixed(4, True, 0).eval(), (torch.from_numpy(pictures(4)),))
    with pytest.raises(UsageError, match="images"):
        gp.plan(graph, macs=0.5, importance="reconstruction")


class Meeting(nn.Module):
    """Two layers that meet in a sum, without a norm between, the shortcut's first or last in the code."""

    def __init__(self, shortcut_first):
        super().__init__()
        torch.manual_seed(0)
        self.shortcut_first = shortcut_first
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 20, 3, padding=1)
        self.shortcut, self.head = nn.Conv2d(12, 20, 1), nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        early = self.shortcut(x) if self.shortcut_first else None
        branch = self.outer(F.relu(self.inner(x)))
        return self.head(F.relu(branch + (self.shortcut(x) if early is None else early)).mean((2, 3)))


@pytest.mark.parametrize("shortcut_first", [False, True])
def test_where_two_layers_meet_the_later_one_makes_up_for_the_other(shortcut_first):
    net = Meeting(shortcut_first).eval()
    plan = gp.plan(gp.trace(net, (torch.zeros(2, 3, 8, 8),)), ratio=0.25)
    found = gp.reconstruct(net, plan, source())
    images = torch.from_numpy(pictures(40, seed=3))
    with torch.no_grad():
        dense, fitted, plain = net(images), found.model(images), gp.mask(net, plan)(images)
    assert (fitted - dense).square().mean() < 0.5 * (plain - dense).square().mean()


class Dropping(Meeting):
    """The same with dropout in front of a layer, of a sum and of the head."""

    def forward(self, x):
        x = F.dropout(F.relu(self.stem(x)), 0.5, self.training)
        early = F.dropout(F.dropout(self.shortcut(x), 0.1, self.training), 0.1, self.training)
        sums = F.relu(self.outer(F.relu(self.inner(x))) + early)
        return self.head(F.dropout(sums.mean((2, 3)), 0.5, self.training))


def test_dropout_is_looked_past():
    net, images = Dropping(True).eval(), torch.from_numpy(pictures(40, seed=3))
    plan = gp.plan(gp.trace(net, (torch.zeros(2, 3, 8, 8),)), ratio=0.25)
    found = gp.reconstruct(net, plan, source())
    assert [layer.outcome for layer in found.report.layers] == ["unchanged", *["fitted"] * 4]
    with torch.no_grad():
        dense, fitted, plain = net(images), found.model(images), gp.mask(net, plan)(images)
    assert (fitted - dense).square().mean() < 0.5 * (plain - dense).square().mean()
