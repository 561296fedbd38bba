"""In which form a slim file comes, what stays because it was asked for, and what is said where nothing went."""

import numpy as np
import onnx
import onnx.parser
import pytest
from builder import FLOAT, INT64, Builder, difference, image, network, run, shapes, zero
from onnx import helper, numpy_helper

from graphprune import slimming
from graphprune.errors import BudgetError, ModelLoadError, OutputExistsError, PlanError, UsageError
from graphprune.formats.onnx_cost import size_of
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.slimming import slim_onnx


def linked(path, model, **options):
    """The file, and the bytes of all files that it consists of."""
    onnx.save(model, path, **options)
    return size_of(path)


def tied(norms=2):
    """One kernel in several convolutions, each with a batch norm of its own behind it, and no channel that may go."""
    b = Builder(17)
    x, kernel = b.input(("n", 4, 8, 8)), b.weight(4, 4, 3, 3, name="kernel")
    for number in range(3):
        x = b.call("Conv", x, kernel, pads=[1] * 4)
        x = b.call("Relu", b.norm(x, 4) if number < norms else x)
    b.output(x, ("n", 4, 8, 8))
    return b.model()


def merged():
    """Batch norms that share vectors of equal numbers, as exporters store them, behind layers without a bias."""
    b = Builder(17)
    x, ones, zeros = b.input(("n", 3, 8, 8)), b.literal(np.ones(128, np.float32)), b.literal(np.zeros(128, np.float32))
    outputs = []
    for _ in range(4):
        y = b.call("Conv", x, b.weight(128, 3, 1, 1))
        outputs.append(b.call("BatchNormalization", y, ones, zeros, zeros, ones))
    b.output(b.call("Concat", *outputs, axis=1), ("n", 512, 8, 8))
    return b.model()


def reshaped(packed=False, rounds=10):
    """Layers in a row that lose a channel each, between Reshapes whose sizes one literal holds, or each its own."""
    b = Builder(17)
    x, sizes = b.conv(b.input((1, 3, 4, 4)), 3, 4, 1), ([0, 4, 16], [0, 4, 4, 4])
    shared = [b.literal(np.array(size)) for size in sizes]
    for number in range(rounds):
        names = shared
        if packed:
            names = [f"{number}.{len(size)}" for size in sizes]
            b.literals += [
                helper.make_tensor(name, INT64, (len(size),), size) for name, size in zip(names, sizes, strict=True)
            ]
        x = b.call("Reshape", b.call("Tanh", b.call("Reshape", x, names[0])), names[1])
        x = b.conv(x, 4, 4, 1, name=f"conv{number}")
    b.output(b.conv(x, 4, 2, 1), (1, 2, 4, 4))
    model = b.model()
    for number in range(rounds):
        zero(model, f"conv{number}.weight", (slice(None), number % 4))
    return model


def enlarged():
    """A table of places, each in the one byte that it needs."""
    b = Builder(17)
    table = np.stack(np.meshgrid(np.arange(32) // 2, np.arange(32) // 2, indexing="ij"), -1)
    b.literals.append(helper.make_tensor("table", INT64, table.shape, table.ravel().tolist()))
    x = b.call("Transpose", b.call("Relu", b.conv(b.input((1, 3, 16, 16)), 3, 8, 1)), perm=[2, 3, 0, 1])
    x = b.call("Transpose", b.call("GatherND", x, "table"), perm=[2, 3, 0, 1])
    b.output(b.conv(x, 8, 2, 1, name="last"), (1, 2, 32, 32))
    model = b.model()
    zero(model, "last.weight", (slice(None), 1))
    return model


def called():
    """Twenty calls of a local function, which takes less room than its body twenty times."""
    calls = " ".join(f"v{n + 1} = my.block(v{n}, w)" for n in range(20))
    text = f"""<ir_version: 9, opset_import: ["" : 17, "my" : 1]>
    net (float[n,2] v0) => (float[n,2] v20) <float[2,2] w = {{1,2,3,4}}> {{ {calls} }}
    <domain: "my", opset_import: ["" : 17]>
    block (a, w) => (c) {{ b = MatMul(a, w) d = Tanh(b) e = Add(d, a) f = Tanh(e) c = Mul(f, a) }}"""
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize(
    "model",
    [tied(), tied(1), tied(3), merged(), called(), reshaped(), reshaped(packed=True), enlarged()],
    ids=["2", "1", "3", "merged", "called", "reshaped", "packed", "enlarged"],
)
@pytest.mark.parametrize("goal", [{}, {"ratio": 0.5}])
def test_no_slim_file_is_larger_than_what_came(source, model, goal):
    before = linked(source, model)
    report = slim_onnx(source, source.with_name("slim.onnx"), **goal)
    assert size_of(source.with_name("slim.onnx")) <= before
    assert report.bytes_after <= report.bytes_before == before
    assert report.params_after <= report.params_before


@pytest.mark.parametrize("goal", [{}, {"ratio": 0.5}])
def test_small_numbers_stay_in_the_file_where_the_weights_lie_in_another(source, goal):
    """Outside, each number of the table would take eight bytes in place of one."""
    model = enlarged()
    zero(model, "last.weight", (slice(None), slice(1, 7)))
    weight = numpy_helper.from_array(np.ones((2, 200), np.float32), "behind")
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("MatMul", ["columns", "behind"], ["y"]))
    model.graph.node.insert(-1, helper.make_node("Reshape", [model.graph.output[0].name, "two"], ["columns"]))
    model.graph.initializer.append(numpy_helper.from_array(np.int64([-1, 2]), "two"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, (1024, 200)))
    before = linked(source, model, save_as_external_data=True, location="weights.data", size_threshold=256)
    target = source.with_name("slim.onnx")
    report = slim_onnx(source, target, **goal)
    assert report.removed_groups > 0
    assert size_of(target) < before
    tensors = {tensor.name: tensor for tensor in onnx.load(target, load_external_data=False).graph.initializer}
    assert tensors["behind"].external_data
    assert len(tensors["table"].int64_data) == 2 * 32 * 32
    assert onnx.load(target).graph.name == "g"


def test_a_file_that_would_have_grown_is_left_in_its_form(source):
    onnx.save(called(), source)
    slim_onnx(source, source.with_name("slim.onnx"))
    assert source.with_name("slim.onnx").read_bytes() == source.read_bytes()


def sharing():
    """Layers of few numbers share a vector of many; without another channel each would need one of its own."""
    b = Builder(17)
    x, slopes = b.conv(b.input(("n", 3, 4, 4)), 3, 1, 1), b.literal(np.linspace(0.1, 0.9, 64, dtype=np.float32))
    scores = []
    for number in range(8):
        y = b.call("Conv", x, b.weight(64, 1, 1, 1, name=f"first{number}"))
        y = b.call("Sin", b.call("Mul", b.call("Transpose", y, perm=[0, 2, 3, 1]), slopes))
        scores.append(b.call("MatMul", y, b.weight(64, 1, name=f"last{number}")))
    b.output(b.call("Concat", *scores, axis=3), ("n", 4, 4, 8))
    return b.model()


@pytest.mark.parametrize("goal", [{}, {"ratio": 0.02}])
def test_layers_whose_own_vectors_would_make_the_file_larger_lose_the_same_channels(source, goal, caplog):
    model = sharing()
    for number in range(8):
        zero(model, f"last{number}", [0, number + 1])  # the first is dead in all of them, the other in one
    before = linked(source, model)
    report = slim_onnx(source, source.with_name("slim.onnx"), **goal)
    found = shapes(onnx.load(source.with_name("slim.onnx")))
    assert [found[f"last{number}"] for number in range(8)] == [(63, 1)] * 8
    assert sorted(found.values()).count((63,)) == 1
    assert report.removed_groups == 1
    assert report.bytes_after == size_of(source.with_name("slim.onnx")) < before
    assert not caplog.records


def test_a_budget_that_needs_vectors_apart_is_kept_though_the_file_grows(source, caplog, monkeypatch):
    onnx.save(sharing(), source)
    right = slimming._one_shot

    def chosen(*arguments, whole_vectors=False):
        if whole_vectors:
            raise BudgetError("no layer can lose that much")
        graph = trace_onnx(source)
        removed = np.zeros(graph.n_groups, bool)
        removed[[graph.axes[(f"last{number}", 0)][number] for number in range(8)]] = True
        return graph.plan(removed), right(*arguments)[1]

    monkeypatch.setattr(slimming, "_one_shot", chosen)
    report = slim_onnx(source, source.with_name("slim.onnx"), macs=0.99)
    assert report.removed_groups == 8
    assert "slim.onnx is larger than net.onnx" in caplog.text


def test_a_plan_is_carried_out_though_the_file_grows_and_that_is_said(source, caplog):
    model = sharing()
    onnx.save(model, source)
    gone = {f"{layer}{number}": {0: (number,)} for number in range(8) for layer in ("first", "last")}
    plan = PruningPlan(gone, {name: (64, 1, 1, 1) if name.startswith("first") else (64, 1) for name in gone})
    report = slim_onnx(source, source.with_name("slim.onnx"), plan)
    assert report.removed_groups == 8
    assert report.bytes_after > report.bytes_before
    assert "slim.onnx is larger than net.onnx" in caplog.text


def test_a_plan_for_shared_vectors_says_so_and_outlives_its_run(source, tmp_path):
    onnx.save(sharing(), source)
    graph = trace_onnx(source, whole_vectors=True)
    assert (graph.n_groups, trace_onnx(source).n_groups) == (64, 8 * 64)
    plan = graph.plan(np.arange(64) == 5)
    assert plan.options == {"whole_vectors": True}
    plan.save(tmp_path / "plan.json")
    report = slim_onnx(source, source.with_name("slim.onnx"), tmp_path / "plan.json")
    assert report.removed_groups == 1
    assert report.bytes_after < report.bytes_before


@pytest.mark.parametrize("grows", [False, True])
def test_weights_in_another_file_stay_in_one(source, grows):
    """Beside the slim file and under its name, also where the file is left in its form."""
    if grows:
        model = called()
        model.graph.node.append(helper.make_node("MatMul", ["v20", "big"], ["y"]))
        big = np.ones((2, 400), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(big, "big"))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, ("n", 400)))
    else:
        model = network()
    before = linked(source, model, save_as_external_data=True, location="weights.onnx.data", size_threshold=256)
    report = slim_onnx(source, source.with_name("slim.onnx"))
    assert sorted(path.name for path in source.parent.iterdir()) == [
        "net.onnx",
        "slim.onnx",
        "slim.onnx.data",
        "weights.onnx.data",
    ]
    after = onnx.load(source.with_name("slim.onnx"), load_external_data=False)
    held = {entry.value for t in after.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert held == {"slim.onnx.data"}
    assert report.removed_groups == (0 if grows else 2)
    assert report.bytes_after <= before
    x = np.ones((1, 2), np.float32) if grows else image(1, 3, 8, 8)
    feeds = {"v0" if grows else "x": x}
    assert difference(run(source, feeds), run(source.with_name("slim.onnx"), feeds)) < 1e-5
    source.with_name("slim.onnx").unlink()
    with pytest.raises(OutputExistsError):  # the second file is somebody's, too
        slim_onnx(source, source.with_name("slim.onnx"))


@pytest.mark.parametrize(
    ("patterns", "widths"),
    [
        ("first*", (8, 4)),
        (["first", "middle.*"], (8, 8)),
        ("stem", (8, 4)),  # of the node
        ("last*", (4, 4)),
    ],
)
def test_layers_keep_their_channels_where_it_is_asked(source, patterns, widths):
    model = network(dead=())
    model.graph.node[0].name = "stem/Conv"
    onnx.save(model, source)
    slim_onnx(source, source.with_name("slim.onnx"), ratio=0.5, freeze=patterns)
    found = shapes(onnx.load(source.with_name("slim.onnx")))
    assert (found["first.weight"][0], found["middle.weight"][0]) == widths


def test_dead_channels_of_layers_that_are_frozen_stay(source):
    model = network(dead=(1, 5))
    for name in ("middle.weight", "middle.bias"):
        zero(model, name, [2])
    onnx.save(model, source)
    report = slim_onnx(source, source.with_name("slim.onnx"), freeze="first")
    assert report.removed_groups == 1
    found = shapes(onnx.load(source.with_name("slim.onnx")))
    assert (found["first.weight"][0], found["middle.weight"][0]) == (8, 7)
    for options in ({"freeze": "nobody"}, {"freeze": "nobody", "ratio": 0.5}):
        with pytest.raises(PlanError, match="nothing is named 'nobody'"):
            slim_onnx(source, source.with_name("other.onnx"), **options)
    with pytest.raises(UsageError, match="a plan says what goes: leave out freeze"):
        slim_onnx(source, source.with_name("other.onnx"), PruningPlan({}), freeze="first")


def test_why_nothing_was_removed_is_said(source):
    onnx.save(network(dead=()), source)
    targets = (source.with_name(f"{number}.onnx") for number in range(9))
    assert slim_onnx(source, next(targets)).nothing == "there is nothing to remove: no channel is dead"
    assert "less than a channel of any layer" in slim_onnx(source, next(targets), ratio=0.01).nothing
    assert slim_onnx(source, next(targets), PruningPlan({})).nothing == "the plan removes nothing of this file"
    assert slim_onnx(source, next(targets), ratio=0.5).nothing == ""
    b = Builder(17)
    b.output(b.conv(b.input(("n", 3, 8, 8)), 3, 4), ("n", 4, 8, 8))
    onnx.save(b.model(), source)
    assert slim_onnx(source, next(targets), ratio=0.5).nothing.startswith("nothing can be removed")


def test_types_that_a_file_leaves_out_are_no_noise(source, capfd):
    """Weights in Constant nodes, of whose results the file says nothing."""
    model = network(dead=())
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    model.graph.ClearField("initializer")
    onnx.save(model, source)
    assert slim_onnx(source, source.with_name("slim.onnx"), ratio=0.5).removed_groups == 8
    assert capfd.readouterr().err == ""


def test_an_input_that_takes_no_random_number_is_asked_for(source, tmp_path):
    """As the rate of a recording, which chooses among two networks."""
    b = Builder(17)
    x, rate = b.input(("n", 3, 8, 8)), b.input((), "rate", INT64)
    x = b.call("Relu", b.conv(x, 3, 8, name="first"))
    sizes = b.call("Concat", b.literal(np.array([-1])), b.call("Unsqueeze", rate, b.literal(np.array([0]))), axis=0)
    b.output(b.call("MatMul", b.call("Reshape", x, sizes), b.weight(64, 4, name="last")), ("m", 4))
    onnx.save(b.model(), source)
    with pytest.raises(
        ModelLoadError, match=r"cannot run it on random numbers: .*arrays that it takes for 'x', 'rate': inputs="
    ):
        slim_onnx(source, tmp_path / "slim.onnx", ratio=0.5)
    given = {"x": image(2, 3, 8, 8), "rate": np.array(64)}
    report = slim_onnx(source, tmp_path / "slim.onnx", ratio=0.5, inputs=given)
    assert report.uncounted == ()


@pytest.mark.parametrize("scales", [1, 8])
def test_a_quantized_file_that_runs_only_as_it_is_written_says_so(source, caplog, scales):
    """A scale a channel in front of a depthwise layer, as NNCF writes it: onnxruntime's own takes one in all."""
    b = Builder(17)

    def through_bytes(x, count=1):
        scale = np.full(count, 0.05, np.float32) if count > 1 else np.float32(0.05)
        settings = b.literal(scale), b.literal(np.zeros(scale.shape, np.uint8))
        return b.call("DequantizeLinear", b.call("QuantizeLinear", x, *settings, axis=1), *settings, axis=1)

    def conv(x, outputs, inputs, kernel, **attributes):
        numbers = b.rng.integers(-127, 127, (outputs, inputs, kernel, kernel)).astype(np.int8)
        settings = b.literal(np.full(outputs, 0.002, np.float32)), b.literal(np.zeros(outputs, np.int8))
        weight = b.call("DequantizeLinear", b.literal(numbers), *settings, axis=0)
        return b.call("Relu", b.call("Conv", x, weight, pads=[kernel // 2] * 4, **attributes))

    x = conv(through_bytes(b.input((1, 3, 8, 8))), 8, 3, 1)
    x = conv(through_bytes(x, scales), 8, 1, 3, group=8)
    b.output(through_bytes(conv(through_bytes(x), 4, 8, 1)), (1, 4, 8, 8))
    onnx.save(b.model(), source)
    assert slim_onnx(source, source.with_name("slim.onnx"), ratio=0.5).removed_groups == 4
    said = "slim.onnx runs in onnxruntime only with its graph optimization off"
    assert (said in caplog.text) is (scales > 1)
    assert ("the file that it was made from runs no other way" in caplog.text) is (scales > 1)
