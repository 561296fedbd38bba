"""int8 files: what they compute, what is left in float32, and what is said where that is not enough."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import graphprune as gp
from graphprune import int8, int8_search
from graphprune.data import ImageSource, Preprocess
from graphprune.errors import DataError, ModelLoadError, OutputExistsError, UnsupportedModelError, UsageError
from graphprune.int8_delivery import quantize_members
from graphprune.int8_search import Judge, Trial, choose_layers
from graphprune.model_runner import open_runner
from graphprune.quantize import QuantizeOptions, quantize_onnx
from graphprune.report import describe_int8

SIZE = 8


class Residual(nn.Module):
    """Convolutions with norms, an addition, and a head; `loud` makes one channel of the first 100 times larger."""

    def __init__(self, loud: bool = False):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.third = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)
        if loud:
            with torch.no_grad():
                self.third.weight[0] *= 300
                self.head.weight[:, 0] /= 300

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x) + x)
        return self.head(self.third(x).mean((2, 3)))


def pictures(count=96, seed=0):
    pixels = np.random.default_rng(seed).random((count, SIZE, SIZE, 3)).astype(np.float32)
    return ImageSource(pixels, Preprocess.of((SIZE, SIZE)), name="noise")


def exported(folder, name="net", **options):
    torch.manual_seed(0)
    net = Residual(**options)
    net(torch.randn(32, 3, SIZE, SIZE))
    return gp.export_onnx(net.eval(), (torch.randn(2, 3, SIZE, SIZE),), folder / f"{name}.onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("float"))


QUICK = QuantizeOptions(calibration_images=32, search_images=64, min_agreement=0.0)


def ops(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def answers(path, images):
    return open_runner(path).run([images.batch(slice(None))])[0]


def test_an_int8_file_computes_what_the_float_one_does(source, tmp_path):
    target = tmp_path / "int8.onnx"
    report = quantize_onnx(source, target, pictures(), options=QUICK)
    assert (report.layers, report.float_layers, report.reached) == (4, (), True)
    expected, found = answers(source, pictures(seed=1)), answers(target, pictures(seed=1))
    error = ((found - expected) ** 2).sum() / ((expected - expected.mean(0)) ** 2).sum()
    assert 0 < error < 0.05
    assert (report.bytes_before, report.bytes_after) == (source.stat().st_size, target.stat().st_size)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer}
    weights = [array for array in stored.values() if array.dtype == np.int8 and array.ndim >= 2]
    assert len(weights) == 4
    if report.scheme.reduce_range:
        assert max(int(np.abs(array).max()) for array in weights) <= 64


def test_weights_are_symmetric_and_have_a_scale_a_channel(source, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_onnx(source, target, pictures(), options=QUICK)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer}
    (kernel,) = [name for name, array in stored.items() if array.shape == (16, 16, 3, 3)]
    assert stored[kernel.replace("quantized", "scale")].shape == (16,)
    zeros = stored[kernel.replace("quantized", "zero_point")]
    assert not zeros.any()


def test_the_same_seed_gives_the_same_file(source, tmp_path):
    files = [tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx")]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        options = QuantizeOptions(calibration_images=8, search_images=8, min_agreement=0.0, seed=seed)
        quantize_onnx(source, file, pictures(), options=options)
    first, same, other = (file.read_bytes() for file in files)
    assert first == same
    assert first != other


def test_a_layer_left_out_comes_with_what_is_fused_into_it(source):
    model = int8.prepare(source)
    scheme = int8.Scheme(reduce_range=True)
    calibrated = int8.calibrate(model, [pictures(8).batch(slice(None))], scheme)
    convolutions = calibrated.layers[:3]
    left = onnx.load_model_from_string(calibrated.quantized(without=[convolutions[1]]))
    readers = {name: node.op_type for node in left.graph.node for name in node.input}
    kinds = {node.name: node for node in model.graph.node}
    second = kinds[convolutions[1]].output[0]
    assert readers[second] == "Add"  # no QuantizeLinear between them
    nothing = onnx.load_model_from_string(calibrated.quantized(without=calibrated.layers))
    assert not [t for t in nothing.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    alone = onnx.load_model_from_string(calibrated.quantized(only=[convolutions[0]]))
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4 for t in alone.graph.initializer) == 1


class Fake:
    """A calibrated model whose quality is what a table says: the more sensitive layers in float32, the better."""

    def __init__(self, harm, calibration="minmax"):
        self.harm = harm
        self.layers = tuple(harm)
        self.scheme = int8.Scheme(calibration=calibration)

    def quantized(self, *, without=(), only=None):
        left = set(only) if only is not None else set(self.layers) - set(without)
        return json.dumps([self.scheme.calibration, sum(self.harm[name] for name in left)]).encode()


def fake_judge(model, calibration="", float_layers=0, limit=None):
    harm = json.loads(model)[1]
    return Trial(calibration, float_layers, round(1 - harm, 9), harm)


HARM = {"first": 0.001, "a": 0.02, "b": 0.0, "c": 0.03, "d": 0.001, "e": 0.01, "f": 0.001, "last": 0.002}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.90, set()),
        (0.936, {"first", "last"}),
        (0.96, {"first", "last", "c"}),
        (0.98, {"first", "last", "c", "a"}),
        (0.997, {"first", "last", "c", "a", "e"}),
    ],
)
def test_as_few_layers_as_reach_the_target_stay_in_float32(target, expected):
    choice = choose_layers([Fake(HARM)], fake_judge, target, limit=8)
    assert choice.reached
    assert set(choice.float_layers) == expected
    assert choice.trial.agreement >= target


def test_no_more_layers_than_allowed_and_the_best_is_kept():
    choice = choose_layers([Fake(HARM)], fake_judge, 1.0, limit=3)
    assert not choice.reached
    assert set(choice.float_layers) == {"first", "last", "c"}
    assert max(trial.float_layers for trial in choice.trials) == 3
    assert choose_layers([Fake(HARM)], fake_judge, 1.0, limit=0).float_layers == ()
    assert choose_layers([Fake(HARM)], fake_judge, 1.0, limit=1).float_layers == ("c",)


def test_another_calibration_is_tried_before_layers_are_left_out():
    worse = {name: 2 * harm for name, harm in HARM.items()}

    def candidates():
        yield Fake(HARM)
        yield Fake(worse, "percentile")

    choice = choose_layers(candidates(), fake_judge, 0.96, limit=8)
    assert choice.scheme.calibration == "minmax"
    assert [trial.calibration for trial in choice.trials[:3]] == ["minmax", "percentile", "minmax"]
    better = {name: harm / 10 for name, harm in HARM.items()}
    choice = choose_layers(iter([Fake(HARM), Fake(better, "percentile")]), fake_judge, 0.96, limit=8)
    assert (choice.scheme.calibration, choice.float_layers) == ("percentile", ())

    def never():
        yield Fake(HARM)
        raise AssertionError("a second calibration is not needed")

    assert choose_layers(never(), fake_judge, 0.5, limit=8).reached


def test_the_judge_sees_the_classes_of_the_float_model(source):
    judge = Judge(source.read_bytes(), pictures(70))
    same = judge(source.read_bytes())
    assert (same.agreement, same.distance) == (1.0, 0.0)
    assert Trial("", 0, None, 0.25).fidelity == 0.75


HEADS = """<ir_version: 8, opset_import: ["" : 17]> net (float[n,3,8,8] x) => ({outputs}) {{
    flat = Flatten(x)
    first = MatMul(flat, u)  second = MatMul(flat, v)  label = ArgMax<axis = 1, keepdims = 0>(second)
}}"""


def heads(outputs, sign):
    """Two linear classifiers; of one side, the second gives the opposite of what the other side's gives."""
    model = onnx.parser.parse_model(HEADS.format(outputs=outputs))
    rng = np.random.default_rng(0)
    for name, factor in (("u", 1.0), ("v", sign)):
        weight = (factor * rng.standard_normal((3 * SIZE * SIZE, 4))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    "outputs",
    ["float[n,4] first, float[n,4] second", "float[n,4] first, int64[n] label", "int64[n] label", "float[n,4] second"],
)
@pytest.mark.parametrize("output_loss", ["auto", "mse"])
def test_no_output_is_passed_over(outputs, output_loss):
    judge = Judge(heads(outputs, 1.0), pictures(20), output_loss=output_loss)
    assert judge(heads(outputs, 1.0)).fidelity == 1.0
    assert judge(heads(outputs, -1.0)).fidelity < 0.5


def test_images_that_fill_up_a_fixed_batch_do_not_count(tmp_path):
    model = onnx.load_model_from_string(heads("float[n,4] second", 1.0))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 16
    judge = Judge(model.SerializeToString(), pictures(20))
    assert [rows for _, rows in judge._batches] == [16, 4]


def test_numbers_are_compared_by_their_distance(tmp_path):
    source = exported(tmp_path, "slim")
    same = Judge(source.read_bytes(), pictures(70), output_loss="mse")(source.read_bytes())
    assert (same.agreement, same.distance, same.fidelity) == (None, 0.0, 1.0)
    report = quantize_onnx(
        source, tmp_path / "int8.onnx", pictures(), options=dataclasses.replace(QUICK, output_loss="mse")
    )
    assert report.agreement is None
    assert report.distance > 0
    with pytest.raises(UsageError, match="output_loss must be one of auto, kl, mse"):
        QuantizeOptions(output_loss="l1")


@pytest.mark.parametrize(("setting", "has_classes"), [("mse", False), ("auto", True)])
def test_outputs_are_to_int8_what_they_are_to_the_training(tmp_path, setting, has_classes):
    run = SimpleNamespace(
        members=[SimpleNamespace(name="slim", file=exported(tmp_path, "slim"))],
        files={},
        engine=SimpleNamespace(config=gp.CompressConfig(output_loss=setting)),
    )
    (fact,) = quantize_members(run, pictures(), QUICK)
    assert (fact["agreement"] is not None) == has_classes
    assert fact["options"]["output_loss"] == setting


def test_a_map_is_numbers_unless_it_is_said_to_be_classes(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    source = gp.export_onnx(net.eval(), (torch.randn(2, 3, SIZE, SIZE),), tmp_path / "map.onnx")
    found = [
        quantize_onnx(
            source, tmp_path / f"{loss}.onnx", pictures(), options=dataclasses.replace(QUICK, output_loss=loss)
        )
        for loss in ("auto", "kl")
    ]
    assert [report.agreement is None for report in found] == [True, False]
    assert found[1].agreement_unit == "pixels"
    assert "of the pixels; 100.00 %" in found[1].describe_miss(1.0)
    facts = {**found[1].to_dict(), "of": "slim", "name": "int8"}
    assert "of the pixels of 64 images" in describe_int8(facts)


SHARED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[n,3,8,8] x) => (float[n,m] y) <float[3,3,3,3] w = {{{weights}}}, float[3] b = {{0.1, 0.2, 0.3}}> {{
    first = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    second = Conv <pads = [1, 1, 1, 1]> (first, w, b)
    y = Flatten (second)
}}"""


def test_a_layer_left_in_float32_has_weights_of_its_own():
    weights = ", ".join(f"{value:.3f}" for value in np.random.default_rng(0).standard_normal(81))
    model = onnx.parser.parse_model(SHARED.format(weights=weights))
    for node in model.graph.node:
        node.name = node.output[0]
    calibrated = int8.calibrate(model, [pictures(8).batch(slice(None))], int8.Scheme())
    assert calibrated.layers == ("first", "second")
    for options in ({"without": ["first"]}, {"only": ["second"]}):
        graph = onnx.load_model_from_string(calibrated.quantized(**options)).graph
        layers = {node.name: node for node in graph.node if node.op_type == "Conv"}
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        assert stored[layers["first"].input[1]].dtype == np.float32
        assert layers["second"].input[1] not in stored
    whole = onnx.load_model_from_string(calibrated.quantized()).graph
    assert sum(len(tensor.dims) == 4 for tensor in whole.initializer) == 1  # both share them still


def test_weights_that_are_computed_are_computed_ahead(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n,3,8,8] x) => (float[n,4] y) <int64[2] shape = {192, 4}> {
        flat = Flatten (x)
        w = Reshape (stored, shape)
        y = MatMul (flat, w)
    }"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal(768).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "stored"))
    onnx.save(model, tmp_path / "net.onnx")
    report = quantize_onnx(tmp_path / "net.onnx", tmp_path / "int8.onnx", pictures(), options=QUICK)
    assert report.layers == 1
    assert report.bytes_after < report.bytes_before


def test_layers_in_bodies_are_said_to_be_left(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n,3,8,8] x) => (float[n,192] y) <bool yes = {1}> {
        y = If (yes) <
            then_branch = one () => (a) { a = Flatten (x) },
            else_branch = two () => (b) { c = Relu (x) b = Flatten (c) }
        >
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedModelError, match="outside the bodies of If, Loop and Scan"):
        quantize_onnx(tmp_path / "net.onnx", tmp_path / "int8.onnx", pictures(), options=QUICK)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("calibration", int8.CALIBRATIONS)
def test_activations_that_are_no_numbers(source, tmp_path, calibration):
    model = onnx.load(source)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
    onnx.save(model, tmp_path / "net.onnx")
    options = dataclasses.replace(QUICK, calibration=calibration)
    with pytest.raises(UnsupportedModelError, match=r"no finite numbers|is not finite"):
        quantize_onnx(tmp_path / "net.onnx", tmp_path / "int8.onnx", pictures(), options=options)


@pytest.mark.parametrize("noted", ["{", "[]", '{"mean": "x"}'])
def test_damaged_metadata(source, tmp_path, noted):
    model = onnx.load(source)
    model.metadata_props.add(key="graphprune_preprocessing", value=noted)
    onnx.save(model, tmp_path / "noted.onnx")
    with pytest.raises(UnsupportedModelError, match="graphprune_preprocessing cannot be read"):
        quantize_onnx(tmp_path / "noted.onnx", tmp_path / "int8.onnx", pictures(), options=QUICK)


def test_an_agreement_out_of_reach_is_said_and_the_best_is_written(tmp_path, caplog):
    source, target = exported(tmp_path, loud=True), tmp_path / "int8.onnx"
    options = QuantizeOptions(calibration_images=16, search_images=64, min_agreement=1.0, max_float_layers=0.0)
    report = quantize_onnx(source, target, pictures(), options=options)
    assert not report.reached
    assert target.exists()
    assert "100.00 % were asked for" in caplog.text
    assert len({trial.calibration for trial in report.trials}) == 2


def test_kernels_that_saturate_get_7_bits(monkeypatch):
    for found in (True, False):
        monkeypatch.setattr(int8, "saturates", lambda found=found: found)
        assert int8.scheme_of_machine().reduce_range is (found and int8.machine_facts().architecture != "arm64")
    assert int8.scheme_of_machine(reduce_range=True).reduce_range


def test_saturation_is_as_the_instruction_set_says():
    features = int8.machine_facts().features
    has_dot_product = {"avx512_vnni", "avx_vnni", "amx_int8"} & {*features}
    if int8.machine_facts().instruction_set in {"avx2", "avx512"}:
        assert int8.saturates() is not bool(has_dot_product)


def test_the_preprocessing_of_the_file_is_used(source, tmp_path):
    from PIL import Image

    from graphprune.inputs import DataOptions

    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(6):
        pixels = np.random.default_rng(at).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{at}.png")
    seen, noted = Preprocess.of((SIZE, SIZE), mean=(9.0,), std=(0.5,)), tmp_path / "noted.onnx"
    model = onnx.load(source)
    model.metadata_props.add(key="graphprune_preprocessing", value=json.dumps(seen.to_dict()))
    onnx.save(model, noted)
    scales = []
    for file, data in ((source, None), (noted, None), (noted, DataOptions(mean=(0.5,), std=(0.5,)))):
        target = tmp_path / "int8.onnx"
        quantize_onnx(file, target, folder, options=QUICK, data=data, force=True)
        stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer}
        scales.append((float(stored["input_scale"]), int(stored["input_zero_point"])))
    assert scales[1] == pytest.approx((18 / 255, 255), rel=0.05)  # from -18 to 0
    assert scales[2] == pytest.approx((2 / 255, 128), rel=0.05)
    assert scales[0] != scales[1]


def test_a_file_that_is_quantized_already_is_refused(source, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_onnx(source, target, pictures(), options=QUICK)
    with pytest.raises(UnsupportedModelError, match="is quantized already"):
        quantize_onnx(target, tmp_path / "twice.onnx", pictures(), options=QUICK)


def test_bad_arguments_and_images(source, tmp_path):
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(OutputExistsError):
        quantize_onnx(source, tmp_path / "there.onnx", pictures())
    (tmp_path / "link.onnx").symlink_to(source)
    for target in (source, tmp_path / "link.onnx"):
        with pytest.raises(UsageError, match="is the float32 file itself"):
            quantize_onnx(source, target, pictures(), force=True)
    with pytest.raises(ModelLoadError, match="no such file"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "out.onnx", pictures())
    with pytest.raises(DataError, match="at least two are needed"):
        quantize_onnx(source, tmp_path / "out.onnx", pictures(1))
    with pytest.raises(DataError, match="where the model takes"):
        quantize_onnx(source, tmp_path / "out.onnx", np.zeros((4, 3, 9, 9), np.float32))
    for wrong in ({"calibration": "mean"}, {"min_agreement": 1.5}, {"search_images": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong)).replace("mean", "calibration")):
            QuantizeOptions(**wrong)
    with pytest.raises(UsageError):
        int8.Scheme(activations="int4")


def test_few_images_are_halved_between_both_uses(source, tmp_path):
    report = quantize_onnx(source, tmp_path / "out.onnx", pictures(9))
    assert (report.calibration_images, report.search_images) == (3, 6)


def test_a_network_with_a_fixed_batch(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(0), nn.Unflatten(0, (4, -1)), nn.Linear(288, 5))
    source = gp.export_onnx(net, (torch.randn(4, 3, SIZE, SIZE),), tmp_path / "fixed.onnx")
    report = quantize_onnx(source, tmp_path / "int8.onnx", pictures(30), options=QUICK)
    assert report.agreement > 0.8


def test_weights_in_constant_nodes_are_weights(source, tmp_path):
    model = onnx.load(source)
    nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "constants.onnx")
    for name, file in (("a", source), ("b", tmp_path / "constants.onnx")):
        report = quantize_onnx(file, tmp_path / f"{name}.onnx", pictures(), options=QUICK)
        assert report.layers == 4
    expected, found = (answers(tmp_path / f"{name}.onnx", pictures(seed=1)) for name in "ab")
    np.testing.assert_array_equal(found, expected)


def test_an_old_file_lists_its_weights_as_inputs(source, tmp_path):
    model, target = onnx.load(source), tmp_path / "int8.onnx"
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "old.onnx")
    assert quantize_onnx(tmp_path / "old.onnx", target, pictures(), options=QUICK).layers == 4
    quantize_onnx(source, tmp_path / "new.onnx", pictures(), options=QUICK)
    assert [value.name for value in onnx.load(target).graph.input] == [onnx.load(source).graph.input[0].name]
    np.testing.assert_array_equal(*(answers(path, pictures(seed=1)) for path in (target, tmp_path / "new.onnx")))


def test_the_size_before_is_that_of_all_files(source, tmp_path):
    beside = tmp_path / "net.onnx"
    onnx.save(onnx.load(source), beside, save_as_external_data=True, location="net.data", size_threshold=0)
    report = quantize_onnx(beside, tmp_path / "int8.onnx", pictures(), options=QUICK)
    assert (
        report.bytes_before
        == beside.stat().st_size + (tmp_path / "net.data").stat().st_size
        > source.stat().st_size / 2
    )


def test_nothing_is_printed(source, tmp_path, capfd):
    quantize_onnx(source, tmp_path / "out.onnx", pictures(), options=QUICK)
    assert capfd.readouterr() == ("", "")
    assert int8_search.logger.name == "graphprune"
