"""What onnxruntime runs for a file, in terms of the file's layers; what fell out of its layout, and why."""

import json
from itertools import pairwise

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import graphprune as gp
from graphprune.errors import ModelLoadError, UsageError
from graphprune.models.mobilenet import InvertedResidual
from graphprune.models.resnet_cifar import CifarResNet
from graphprune.report.profile import profile
from graphprune.report.profile_text import render_profile
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_session import CPU
from graphprune.runtime.optimized import optimized_graph

needs_blocks = pytest.mark.skipif(machine_facts().conv_block == 1, reason="no blocked layout on this processor")


def export(folder, net, side=16, name="net"):
    return gp.export_onnx(net.eval(), (torch.randn(2, 3, side, side),), folder / f"{name}.onnx")


def sequence(*widths, groups=1):
    layers = [nn.Conv2d(3, widths[0], 3, padding=1), nn.ReLU()]
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1, groups=groups), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    return export(tmp_path_factory.mktemp("resnet"), CifarResNet(8))


@needs_blocks
def test_a_residual_network_stays_in_the_layout_from_end_to_end(resnet):
    graph = optimized_graph(resnet)
    assert graph.findings == ()
    assert [graph.count(op) for op in ("Add", "Relu", "BatchNormalization", "Slice", "Pad", "ReorderInput")] == [0] * 6
    assert graph.count("ReorderOutput") == 1
    ops = [node.op_type for node in graph.nodes]
    assert (ops.count("Conv+Add+Relu"), ops.count("Conv+Relu"), ops.count("Conv")) == (3, 4, 2)


@needs_blocks
def test_kernels_have_the_names_of_the_layers(resnet):
    layers = [node.layer for node in optimized_graph(resnet).nodes if node.op_type.startswith("Conv")]
    convolutions = ["conv1", *(f"layer{s}.0.conv{c}" for s in (1, 2, 3) for c in (1, 2))]
    assert sorted(set(layers) & set(convolutions)) == sorted(convolutions)
    assert len(layers) == len(set(layers)) == len(convolutions) + 2  # and the two shortcuts


@needs_blocks
def test_a_network_of_depthwise_convolutions_stays_in_the_layout(tmp_path):
    torch.manual_seed(0)
    blocks = [InvertedResidual(16, 16, 1, 4), InvertedResidual(16, 32, 2, 6), InvertedResidual(32, 32, 1, 6)]
    net = nn.Sequential(nn.Conv2d(3, 16, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    graph = optimized_graph(export(tmp_path, net))
    assert graph.findings == ()
    assert [node.op_type for node in graph.nodes].count("Conv+Add") == 2
    assert graph.count("Add") == graph.count("Clip") == 0


@needs_blocks
@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (sequence(30, 32), "30 input channels are no multiple of 4"),
        (sequence(18, 18, groups=18), "depthwise, 18 channels are no multiple of 4"),
        (sequence(24, 24, groups=2), "grouped, 12 to 12 channels a group"),
    ],
)
def test_a_convolution_that_fell_out_says_why(tmp_path, net, reason):
    (finding,) = [f for f in optimized_graph(export(tmp_path, net)).findings if f.op_type.startswith(("Conv", "Fused"))]
    assert reason in finding.reason
    assert finding.layer == "2"


@needs_blocks
def test_widths_on_the_grid_find_nothing(tmp_path):
    assert optimized_graph(export(tmp_path, sequence(32, 32, 16))).findings == ()


class Broken(nn.Module):
    """The addition's other input comes from an operator without blocks."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16))

    def forward(self, x):
        x = self.a(x)
        return self.c(torch.relu(self.b(x) + torch.sin(x)))


@needs_blocks
def test_an_addition_that_fell_out_names_the_culprit(tmp_path):
    findings = optimized_graph(export(tmp_path, Broken())).findings
    reasons = {finding.op_type: finding.reason for finding in findings}
    assert "comes from Sin" in reasons["Add"]
    assert "for Add" in reasons["ReorderOutput"] or "for Sin" in reasons["ReorderOutput"]
    assert "Relu gives none" in reasons["ReorderInput"]


def test_a_weight_that_can_be_overridden_is_named(tmp_path):
    if machine_facts().conv_block == 1:
        pytest.skip("no blocked layout on this processor")
    x = helper.make_tensor_value_info("x", 1, ["n", 16, 8, 8])
    w = helper.make_tensor_value_info("w", 1, [16, 16, 3, 3])
    y = helper.make_tensor_value_info("y", 1, ["n", 16, 6, 6])
    weight = numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], name="c")], "g", [x, w], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (finding,) = optimized_graph(model.SerializeToString()).findings
    assert finding.reason


def test_the_profile_covers_all_kernels_and_adds_up(resnet):
    report = profile(resnet, name="r20", shapes={"": (2, 3, 16, 16)}, min_seconds=0.01)
    assert (report.name, report.batch, report.threads, report.provider) == ("r20", 2, 1, CPU)
    assert sum(kernel.share for kernel in report.kernels) == pytest.approx(1)
    assert sum(kernel.ms for kernel in report.kernels) == pytest.approx(report.total_ms)
    assert {kernel.name for kernel in report.kernels} == {node.name for node in optimized_graph(resnet).nodes}
    rows = report.by_operator()
    assert sum(row[3] for row in rows) == pytest.approx(report.total_ms)
    assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["kernels"]


@needs_blocks
def test_the_text_says_what_is_lost_and_why(tmp_path, resnet):
    text = render_profile(profile(resnet, name="r20", min_seconds=0.01))
    assert "nothing fell out" in text
    text = render_profile(profile(export(tmp_path, sequence(30, 32)), name="odd", min_seconds=0.01))
    assert "30 input channels are no multiple of 4" in text
    assert "of the time" in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_machines_without_blocks_find_nothing(monkeypatch, resnet):
    from graphprune.runtime import optimized

    class NoBlocks:
        conv_block = 1
        architecture = "arm64"

    monkeypatch.setattr(optimized, "machine_facts", NoBlocks)
    assert optimized_graph(resnet).findings == ()


def test_int8_kernels_are_told_apart(tmp_path, resnet):
    from graphprune.int8.quantize import QuantizeOptions

    images = np.random.default_rng(0).standard_normal((12, 3, 16, 16)).astype(np.float32)
    options = QuantizeOptions(calibration_images=4, search_images=4, min_agreement=0.0)
    gp.quantize_onnx(resnet, tmp_path / "int8.onnx", images, options=options)
    graph = optimized_graph(tmp_path / "int8.onnx")
    layers = {node.layer for node in graph.nodes if node.op_type == "QLinearConv"}
    assert {"conv1", "layer2.0.conv2"} <= layers
    assert {node.layout for node in graph.nodes if node.op_type.startswith("QLinear")} == {"int8"}


def test_what_onnxruntime_makes_of_silu_is_no_int8_kernel(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.SiLU()).eval()
    gp.export_onnx(model, (torch.zeros(1, 3, 8, 8),), tmp_path / "silu.onnx")
    nodes = optimized_graph(tmp_path / "silu.onnx").nodes
    assert any(node.op_type == "QuickGelu" for node in nodes)
    assert {node.layout for node in nodes} <= {"plain", "blocked"}
    assert not any("Fusion" in node.layer for node in nodes)


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ModelLoadError, match="no such file"):
        profile(tmp_path / "none.onnx")
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[n,h] x) => (float[n,h] y) { y = Relu(x) }'
    with pytest.raises(UsageError, match="its shape must be given"):
        profile(onnx.parser.parse_model(text).SerializeToString(), name="m")


def test_nodes_without_a_name_get_one_that_is_free(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[n,4] x) => (float[n,4] y) {
        a = Abs(x)  b = Neg(a)  y = Abs(b) }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[1].name = "Abs_0"
    onnx.save(model, tmp_path / "net.onnx")
    names = {kernel.name for kernel in profile(tmp_path / "net.onnx", min_seconds=0.01).kernels}
    assert {"Abs_0", "Abs_1"} <= names


def test_bodies_of_loops_and_branches_do_not_count_twice(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[64,64] x) => (float[64,64] y) <int64 steps = {4}, bool yes = {1}> {
        ahead = Relu (x)
        turned = Loop (steps, yes, ahead) <body = turn (int64 i, bool go, float[64,64] v) => (bool on, float[64,64] w) {
            sum = ReduceSum (v)
            big = Greater (sum, sum)
            w = If (big) <
                then_branch = one () => (float[64,64] a) { a = MatMul (v, v) },
                else_branch = two () => (float[64,64] b) { c = MatMul (v, v) b = MatMul (c, v) }
            >
            on = Identity (go)
        }>
        y = Neg (turned)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    kernels = profile(tmp_path / "net.onnx", min_seconds=0.01).kernels
    assert [kernel.op_type for kernel in kernels] == ["Relu", "Loop", "Neg"]
    assert sum(kernel.share for kernel in kernels) == pytest.approx(1)
