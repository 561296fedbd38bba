"""Which layers stay in float32, and how int8 is compared with float32."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from quantizable import QUICK, SIZE, exported, pictures
from torch import nn

import graphprune as gp
from graphprune.delivery.int8_files import quantize_members
from graphprune.errors import UsageError
from graphprune.int8 import scheme
from graphprune.int8.ends import FloatEnd
from graphprune.int8.quantize import QuantizeOptions, quantize_onnx
from graphprune.int8.search import Judge, Trial, choose_layers
from graphprune.report.summary import describe_int8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("float"))


class Fake:
    """A calibrated model whose quality is what a table says: the more sensitive layers in float32, the better."""

    end = FloatEnd()

    def __init__(self, harm, calibration="minmax"):
        self.harm = harm
        self.layers = tuple(harm)
        self.scheme = scheme.Scheme(calibration=calibration)

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
    assert [batch[1] for batch in judge._batches] == [16, 4]


def test_numbers_are_compared_by_their_distance(tmp_path):
    source = exported(tmp_path, "slim")
    same = Judge(source.read_bytes(), pictures(70), output_loss="mse")(source.read_bytes())
    assert (same.agreement, same.distance, same.fidelity) == (None, 0.0, 1.0)
    report = quantize_onnx(
        source, tmp_path / "int8.onnx", pictures(), options=dataclasses.replace(QUICK, output_loss="mse")
    )
    assert report.agreement is None
    assert report.distance > 0
    with pytest.raises(UsageError, match="`output_loss` must be one of auto, kl, mse"):
        QuantizeOptions(output_loss="l1")


@pytest.mark.parametrize(("setting", "has_classes"), [("mse", False), ("auto", True)])
def test_outputs_are_to_int8_what_they_are_to_the_training(tmp_path, setting, has_classes):
    run = SimpleNamespace(
        members=[SimpleNamespace(name="slim", file=exported(tmp_path, "slim"))],
        files={},
        engine=SimpleNamespace(config=gp.CompressConfig(output_loss=setting)),
    )
    (fact,), failed = quantize_members(run, pictures(), QUICK)
    assert (fact["agreement"] is not None) == has_classes
    assert fact["options"]["output_loss"] == setting
    assert failed == {}


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


def test_an_agreement_out_of_reach_is_said_and_the_best_is_written(tmp_path, caplog):
    source, target = exported(tmp_path, loud=True), tmp_path / "int8.onnx"
    options = QuantizeOptions(calibration_images=16, search_images=64, min_agreement=1.0, max_float_layers=0.0)
    report = quantize_onnx(source, target, pictures(), options=options)
    assert not report.reached
    assert target.exists()
    assert "100.00 % were asked for" in caplog.text
    assert len({trial.calibration for trial in report.trials}) == 2
