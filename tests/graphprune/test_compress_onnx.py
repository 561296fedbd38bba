"""`compress` of ONNX files: what comes out is the user's own file, slimmer, with numbers that learned."""

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

import graphprune as gp
from graphprune.compress import BenchmarkOptions
from graphprune.demo import SIDE, DigitNet
from graphprune.passes.errors import UnsupportedModelError

QUICK = BenchmarkOptions(seconds=0)
CONFIG = gp.CompressConfig(macs=0.6, epochs=2, batch_size=16, flip=False, crop=False, precision="float32", threads=1)


def images():
    return np.random.default_rng(0).integers(0, 256, (120, SIDE, SIDE, 1), dtype=np.uint8)


def own_file(path, batch="rows", free=False):
    """A network under names that no torch module would give, with a batch of its own and text around it."""
    torch.manual_seed(0)
    gp.export_onnx(DigitNet(width=8).eval(), (torch.zeros(2, 1, SIDE, SIDE),), path)
    model = onnx.load(path)
    names = {tensor.name: f"net/{tensor.name}:0" for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        first.Clear()
        setattr(first, "dim_param" if isinstance(batch, str) else "dim_value", batch)
    if free:
        dims[2].dim_param, dims[3].dim_param = "high", "wide"
    del model.graph.value_info[:]
    model.doc_string = "reads digits"
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("batch", "free"), [("rows", False), (1, False), ("rows", True)])
def test_the_users_own_file_comes_out_slimmer(tmp_path, batch, free):
    path = own_file(tmp_path / "digits.onnx", batch, free)
    np.save(tmp_path / "images.npy", images())
    before = path.read_bytes()
    result = gp.compress(path, tmp_path / "images.npy", config=CONFIG, output=tmp_path / "out", benchmark=QUICK)
    assert path.read_bytes() == before

    old, new = onnx.load(path), onnx.load(tmp_path / "out" / "slim.onnx")
    assert [i.name for i in new.graph.input] == [i.name for i in old.graph.input]
    assert [o.name for o in new.graph.output] == [o.name for o in old.graph.output]
    assert new.graph.input[0].type == old.graph.input[0].type
    assert (new.opset_import, new.doc_string) == (old.opset_import, "reads digits")
    assert {p.key: p.value for p in new.metadata_props}["author"] == "somebody"
    sizes = [sum(numpy_helper.to_array(t).size for t in m.graph.initializer) for m in (old, new)]
    assert sizes[1] < sizes[0]
    dense, slim = result.metrics["models"]
    assert slim["macs"] <= 0.6 * dense["macs"]
    assert not (tmp_path / "out" / "slim.pt2").exists()

    # The file computes what the network does that was trained: by the model in the result.
    pixels = torch.from_numpy(images()[:1]).permute(0, 3, 1, 2).float() / 255
    normalized = (pixels - 0.5) / 0.5
    session = ort.InferenceSession(tmp_path / "out" / "slim.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: normalized.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(result.model(normalized).numpy(), found, atol=1e-4)


def test_the_plan_cuts_the_users_file(tmp_path):
    path = own_file(tmp_path / "digits.onnx")
    result = gp.compress(path, _normalized(), config=CONFIG, benchmark=QUICK)
    report = gp.slim_onnx(path, tmp_path / "cut.onnx", plan=result.plan)
    assert report.macs_after == result.metrics["models"][-1]["macs"]


def largest_alike(dense, slim):
    (name,) = dense
    return float((dense[name].argmax(1) == slim[name].argmax(1)).mean())


def test_a_measure_of_ones_own_is_reported_and_tried_before_the_training(tmp_path):
    path = own_file(tmp_path / "digits.onnx")
    config = gp.CompressConfig(macs=0.8, epochs=0, threads=1)
    result = gp.compress(path, _normalized(), config=config, benchmark=QUICK, metric=largest_alike)
    assert result.metrics["quality"]["metric"] == pytest.approx(result.metrics["models"][1]["agreement"])
    assert "own metric" in str(result)
    with pytest.raises(gp.UsageError, match=r"`metric`: .* gave nan"):
        gp.compress(path, _normalized(), config=CONFIG, benchmark=QUICK, metric=lambda a, b: float("nan"))


def _normalized():
    return ((images().transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).astype(np.float32)


def test_a_quantized_file_is_refused_before_anything_is_written(tmp_path):
    path = own_file(tmp_path / "digits.onnx")
    gp.quantize_onnx(path, tmp_path / "int8.onnx", gp.load_images(_folder(tmp_path), channels=1))
    with pytest.raises(UnsupportedModelError, match="compress the float32 file"):
        gp.compress(tmp_path / "int8.onnx", _normalized(), config=CONFIG, output=tmp_path / "out", benchmark=QUICK)
    assert not (tmp_path / "out").exists()


def _folder(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for at, image in enumerate(images()[:40]):
        Image.fromarray(image[..., 0]).save(folder / f"{at}.png")
    return folder


def test_a_detector_learns_at_its_raw_heads_and_is_delivered_whole(tmp_path):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "passes" / "importer"))
    sys.path.insert(0, str(Path(__file__).parents[1] / "passes" / "onnx"))
    from test_rest import detector

    onnx.save(detector(), tmp_path / "net.onnx")
    pixels = np.random.default_rng(0).random((60, 3, 4, 4)).astype(np.float32)
    for epochs in (0, 3):
        config = gp.CompressConfig(macs=0.7, epochs=epochs, batch_size=8, flip=False, crop=False, threads=1)
        result = gp.compress(
            tmp_path / "net.onnx", pixels, config=config, benchmark=QUICK, output=tmp_path / f"out{epochs}"
        )
        old, new = onnx.load(tmp_path / "net.onnx"), onnx.load(tmp_path / f"out{epochs}" / "slim.onnx")
        assert [o.name for o in new.graph.output] == [o.name for o in old.graph.output]
        assert "NonMaxSuppression" in {node.op_type for node in new.graph.node}
        dense, slim = result.metrics["models"]
        assert slim["macs"] <= 0.7 * dense["macs"]
        assert "slim.onnx against the masked file" in result.metrics["verification"]
        assert not list((tmp_path / f"out{epochs}").glob(".*onnx"))
        anchors = {t.name: numpy_helper.to_array(t).tobytes() for t in old.graph.initializer}["anchors"]
        assert {t.name: numpy_helper.to_array(t).tobytes() for t in new.graph.initializer}["anchors"] == anchors


class StopsAt:
    """A reporter during whose step the machine goes down."""

    def __init__(self, step):
        self.last = step

    def stage(self, name):
        pass

    def images(self, done, total):
        pass

    def evaluation(self, done, total, best):
        pass

    def step(self, step, total, loss, cost, phase):
        if step == self.last:
            raise OSError("no power")


def test_a_family_with_int8_and_a_measure_of_ones_own_is_resumed_and_ends_the_same(tmp_path):
    path = own_file(tmp_path / "digits.onnx")
    config = dataclasses.replace(CONFIG, macs=(0.8, 0.5), n_students=2, epochs=2, checkpoint_steps=2)
    ways = {
        **{"config": config, "benchmark": QUICK, "metric": largest_alike},
        "quantize": gp.QuantizeOptions(min_agreement=0.1, calibration_images=16, search_images=16),
    }
    whole = gp.compress(path, _normalized(), output=tmp_path / "whole", **ways)
    with pytest.raises(OSError, match="no power"):
        gp.compress(path, _normalized(), output=tmp_path / "stopped", reporter=StopsAt(5), **ways)
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    resumed = gp.compress(path, _normalized(), output=tmp_path / "stopped", resume=True, **ways)

    names = ["slim-macs0.8", "slim-macs0.5"]
    assert list(resumed.family) == names
    for result, folder in ((whole, "whole"), (resumed, "stopped")):
        assert [fact["of"] for fact in result.metrics["int8"]] == names
        for member in result.metrics["members"]:
            assert 0 <= member["quality"]["metric"] <= 1
            assert member["reached"]["macs"] <= member["budget"]["macs"]
        for name in names:
            assert onnx.load(tmp_path / folder / f"{name}.onnx").doc_string == "reads digits"
            assert (tmp_path / folder / f"{name}-int8.onnx").exists()
    for name in names:
        before, after = (onnx.load(tmp_path / folder / f"{name}.onnx") for folder in ("whole", "stopped"))
        for one, other in zip(before.graph.initializer, after.graph.initializer, strict=True):
            np.testing.assert_allclose(numpy_helper.to_array(one), numpy_helper.to_array(other), atol=1e-6)
