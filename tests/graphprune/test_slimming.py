"""The whole way from file to file: what is proven before anything is written, what survives, what is refused."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from builder import FLOAT, INT64, Builder, literal, network, shapes, zero
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import BudgetError, GraphPruneError, ModelLoadError, PlanError, UsageError
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.model import load_model
from graphprune.runtime.optimized import optimized_graph
from graphprune.slimming import slim_onnx


def test_names_texts_and_versions_survive(source):
    model = network(producer_name="somebody", producer_version="9", domain="d", model_version=7, doc_string="text")
    helper.set_model_props(model, {"key": "value"})
    graph = model.graph
    graph.doc_string, graph.name = "graph text", "graph name"
    graph.input[0].doc_string, graph.output[0].doc_string, graph.node[0].doc_string = "in", "out", "node"
    graph.input[0].type.denotation = "IMAGE"
    graph.node[0].metadata_props.add(key="a", value="b")
    graph.metadata_props.add(key="c", value="d")
    graph.initializer[0].doc_string = "weight"
    onnx.save(model, source)
    slim_onnx(source, source.with_name("slim.onnx"))
    after = onnx.load(source.with_name("slim.onnx"))
    assert shapes(after)["first.weight"] == (6, 3, 3, 3)
    for field in ("domain", "model_version", "doc_string", "ir_version", "metadata_props", "opset_import"):
        assert getattr(after, field) == getattr(model, field)
    for field in ("doc_string", "name", "metadata_props", "input", "output"):
        assert getattr(after.graph, field) == getattr(graph, field)
    assert after.graph.node[0].doc_string == "node"
    assert after.graph.node[0].metadata_props[0].value == "b"
    assert [t.doc_string for t in after.graph.initializer if t.name == "first.weight"] == ["weight"]
    assert after.producer_name == "graphprune"


def test_denormal_numbers_are_written_as_zero(source):
    model = network()
    weight = literal(model, "last.weight")
    weight[0, 0] = 1e-35
    zero(model, "last.weight", (0, 0), 1e-35)
    inside = numpy_helper.from_array(np.float32([1, 1e-31, -1e-40, -2]).reshape(4, 1, 1))
    model.graph.node.append(helper.make_node("Constant", [], ["shift"], value=inside))
    model.graph.node.append(helper.make_node("Mul", [model.graph.output[0].name, "shift"], ["y"]))
    model.graph.output[0].name = "y"
    onnx.save(model, source)
    slim_onnx(source, source.with_name("slim.onnx"))
    after = onnx.load(source.with_name("slim.onnx"))
    arrays = [numpy_helper.to_array(t) for t in after.graph.initializer]
    arrays += [numpy_helper.to_array(a.t) for n in after.graph.node for a in n.attribute if a.name == "value"]
    assert len(arrays) == 7
    assert all((np.abs(array)[array != 0] >= 1e-30).all() for array in arrays)


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({"ratio": 0.5}, (4, 4)),
        ({"ratio": 0.5, "importance": "l1"}, (4, 4)),
        ({"ratio": 0.5, "importance": "random", "seed": 3}, (4, 4)),
        ({"ratio": 0.4, "align": 4}, (8, 8)),
        ({"ratio": 0.5, "align": 4}, (4, 4)),
    ],
)
def test_dense_files_are_pruned_in_one_shot(source, options, widths):
    onnx.save(network(dead=()), source)
    slim_onnx(source, source.with_name("slim.onnx"), **options)
    found = shapes(onnx.load(source.with_name("slim.onnx")))
    assert (found["first.weight"][0], found["middle.weight"][0]) == widths


@pytest.mark.parametrize("goal", ["macs", "params"])
def test_budgets_are_kept(source, goal):
    onnx.save(network(dead=()), source)
    report = slim_onnx(source, source.with_name("slim.onnx"), **{goal: 0.6}).to_dict()
    assert 0.3 < report[f"{goal}_after"] / report[f"{goal}_before"] <= 0.6
    with pytest.raises(BudgetError):
        slim_onnx(source, source.with_name("less.onnx"), **{goal: 0.001})
    assert not source.with_name("less.onnx").exists()


def test_sums_of_bytes_that_saturate_are_no_difference(source):
    """On processors without VNNI pairs of products are clipped, and removing a channel makes other pairs."""
    b = Builder(18)
    scale, point = b.literal(np.float32(0.05)), b.literal(np.uint8(3))
    x = b.call("QuantizeLinear", b.input(("n", 3, 8, 8)), b.literal(np.float32(0.02)), point)

    def conv(x, before, inputs, outputs, name):
        weight = b.literal(b.rng.choice([-127, 127], (outputs, inputs, 3, 3)).astype(np.int8), name)
        more = (b.literal(np.float32(0.002)), b.literal(np.int8(0)), scale, point)
        bias = b.literal(np.zeros(outputs, np.int32), f"{name}.bias")
        return b.call("QLinearConv", x, before, point, weight, *more, bias, pads=[1] * 4)

    x = conv(x, b.literal(np.float32(0.02)), 3, 8, "first")
    x = conv(x, scale, 8, 4, "second")
    b.output(b.call("DequantizeLinear", x, scale, point), ("n", 4, 8, 8))
    model = b.model()
    zero(model, "first", [0, 3, 4])
    onnx.save(model, source)
    slim_onnx(source, source.with_name("slim.onnx"))
    assert shapes(onnx.load(source.with_name("slim.onnx")))["second"] == (4, 5, 3, 3)


@pytest.mark.parametrize("inside", [False, True], ids=["initializer", "Constant"])
def test_a_denormal_scalar_stays_a_scalar(source, inside):
    model = network()
    tiny = numpy_helper.from_array(np.float32(1e-35), "tiny")
    if inside:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["tiny"], value=tiny))
    else:
        model.graph.initializer.append(tiny)
    model.graph.node.append(helper.make_node("Max", [model.graph.output[0].name, "tiny"], ["y"]))
    model.graph.output[0].name = "y"
    onnx.save(model, source)
    slim_onnx(source, source.with_name("slim.onnx"))
    onnx.checker.check_model(onnx.load(source.with_name("slim.onnx")), full_check=True)


def test_an_operator_whose_name_is_no_text_is_refused_in_one_line(source):
    """Found by damaged files: what is computed from literals alone is evaluated, and that needs the name."""
    model = network()
    shift = helper.make_node("DequantizeLinear", ["steps", "step"], ["shift"])
    model.graph.initializer.append(numpy_helper.from_array(np.int8([[[3]]] * 4), "steps"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "step"))
    model.graph.node.append(shift)
    model.graph.node.append(helper.make_node("Add", [model.graph.output[0].name, "shift"], ["y"]))
    model.graph.output[0].name = "y"
    source.write_bytes(model.SerializeToString().replace(b"DequantizeLinear", b"DequantizeLinea\xf2"))
    for plan in (None, PruningPlan({})):
        with pytest.raises(GraphPruneError) as caught:
            slim_onnx(source, source.with_name("slim.onnx"), plan)
        assert "\n" not in str(caught.value)
    trace_onnx(load_model(source))  # frozen, as any operator that nobody knows
    assert [path.name for path in source.parent.iterdir()] == ["net.onnx"]


def test_new_literals_are_listed_as_inputs_where_all_are(source):
    """IR version 3: light_resnet50 of the onnx package."""
    model = network(opset=8)
    model.ir_version = 3
    model.graph.initializer.append(numpy_helper.from_array(np.int64([0, 8, 8, 8]), "sizes"))
    for weight in model.graph.initializer:
        shape = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        model.graph.input.append(shape)
    middle = [node for node in model.graph.node if node.op_type == "Conv"][1]
    model.graph.node.insert(2, helper.make_node("Reshape", [middle.input[0], "sizes"], ["shaped"]))
    middle.input[0] = "shaped"
    onnx.save(model, source)
    report = slim_onnx(source, source.with_name("slim.onnx"))
    after = onnx.load(source.with_name("slim.onnx"))
    onnx.checker.check_model(after, full_check=True)
    assert report.removed_groups == 2
    assert {t.name for t in after.graph.initializer} <= {v.name for v in after.graph.input}


def test_a_file_that_would_grow_by_what_is_written_out_stays_as_it_came(source):
    values = helper.make_tensor("weight", FLOAT, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("at", INT64, [2], [0, 5]), [4, 3])
    infos = [helper.make_tensor_value_info(name, FLOAT, ("n", size)) for name, size in (("x", 4), ("y", 3))]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], sparse_initializer=[sparse])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    report = slim_onnx(source, source.with_name("slim.onnx"))
    assert source.with_name("slim.onnx").read_bytes() == source.read_bytes()
    assert (report.bytes_after, report.removed_groups) == (report.bytes_before, 0)


def test_damaged_files_are_refused_by_the_same_words_with_a_plan(source, capfd):
    """With a plan, the file is read here before onnxruntime sees it."""
    for damage in ("attribute", "text", "sizes"):
        model = network()
        if damage == "attribute":
            model.graph.node[0].attribute[0].type = onnx.AttributeProto.FLOAT
        elif damage == "sizes":
            model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 40
        content = model.SerializeToString()
        if damage == "text":
            content = content.replace(b"first.weight", b"first\xffweight")
        source.write_bytes(content)
        for plan in (None, PruningPlan({})):
            with pytest.raises(GraphPruneError) as caught:
                slim_onnx(source, source.with_name("slim.onnx"), plan)
            assert "\n" not in str(caught.value)
        assert [path.name for path in source.parent.iterdir()] == ["net.onnx"]
    assert capfd.readouterr().out == ""  # onnxruntime's fallback would talk there


@pytest.mark.parametrize("outside", [False, True])
def test_nothing_is_written_beside_the_source(tmp_path, outside):
    """Its folder may be one that is read only."""
    (tmp_path / "models").mkdir()
    source, b = tmp_path / "models" / "net.onnx", Builder()
    x = b.call("Relu", b.call("MatMul", b.input(("n", 64)), b.weight(64, 96, name="w0")))
    b.output(b.call("MatMul", x, b.weight(96, 64, name="w1")))
    onnx.save(b.model(), source, **({"save_as_external_data": True, "location": "net.data"} if outside else {}))
    before = source.parent.stat().st_mtime_ns
    plan = PruningPlan({"w0": {1: (0, 2)}, "w1": {0: (0, 2)}}, {"w0": (64, 96), "w1": (96, 64)})
    assert slim_onnx(source, tmp_path / "slim.onnx", plan).removed_groups == 2
    assert source.parent.stat().st_mtime_ns == before


def test_a_plan_with_an_index_out_of_range_is_refused(source):
    plan = PruningPlan({"first.weight": {0: (99,)}}, {"first.weight": (8, 3, 3, 3)})
    with pytest.raises(PlanError, match=r"index 99 of first\.weight along dimension 0, which has 8"):
        slim_onnx(source, source.with_name("slim.onnx"), plan)


def test_maps_are_said_to_be_the_reason(source):
    model = network()
    value = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, ()))
    model.graph.output.append(helper.make_value_info("scores", value))
    onnx.save(model, source)
    with pytest.raises(ModelLoadError, match="Map types are not supported"):
        slim_onnx(source, source.with_name("slim.onnx"), PruningPlan({}))


def test_inputs_that_no_memory_holds(source):
    model = network()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 40
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[2].dim_param = "h"
    onnx.save(model, source)
    with pytest.raises(UsageError, match="does not fit into memory"):
        slim_onnx(source, source.with_name("slim.onnx"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("outside", [False, True])
def test_slimming_needs_little_more_memory_than_the_file_has(tmp_path, outside):
    b, width = Builder(), 4096
    x = b.input(("n", width))
    for number in range(5):
        x = b.call("Relu", b.call("MatMul", x, b.weight(width, width, name=f"w{number}")))
    b.output(x)
    model = b.model()
    zero(model, "w2", (slice(None), slice(0, None, 2)))
    source = tmp_path / "net.onnx"
    onnx.save(model, source, **({"save_as_external_data": True, "location": "net.data"} if outside else {}))
    script = """
import sys
from pathlib import Path
from graphprune.slimming import slim_onnx

before = Path("/proc/self/clear_refs").write_text("5")
resident = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024
start = resident("VmRSS")
assert slim_onnx(sys.argv[1], sys.argv[2]).removed_groups == 2048
print(resident("VmHWM") - start)
"""
    words = [sys.executable, "-c", script, str(source), str(tmp_path / "slim.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.6 * 5 * width**2 * 4 / 2**20


@pytest.mark.parametrize("way", ["plan", "budget"])
def test_a_branch_that_went_leaves_no_layout_behind(tmp_path, way):
    """What is left of it is one number a channel, whose addition would fall out of the blocked layout."""
    b = Builder()
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 16, name="stem"))
    for name in ("zero", "one", "two"):
        inner = b.call("Relu", b.conv(x, 16, 16, name=f"{name}.inner"))
        x = b.call("Relu", b.call("Add", x, b.conv(inner, 16, 16, name=f"{name}.outer")))
    b.output(b.conv(x, 16, 4, name="last"), ("n", 4, 8, 8))
    model = b.model()
    zero(model, "one.inner.weight", range(16))
    zero(model, "one.inner.bias", range(16))
    source, target = tmp_path / "dense.onnx", tmp_path / "slim.onnx"
    onnx.save(model, source)
    if way == "plan":
        graph = trace_onnx(source)
        gone = next(s for s in graph.sets if s.name.startswith("one.inner"))
        removed = ~graph.all_kept()
        removed[gone.groups] = True
        slim_onnx(source, target, plan=graph.plan(removed))
    else:
        slim_onnx(source, target)
    operators = [node.op_type for node in onnx.load(target).graph.node]
    assert operators.count("Add") == 2
    assert optimized_graph(target).count("ReorderInput") == 0
