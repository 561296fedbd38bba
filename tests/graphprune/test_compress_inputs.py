"""`compress` of models with several inputs: an array for each, by name."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.cli import main
from graphprune.compress import BenchmarkOptions
from graphprune.inputs import DataOptions, capture_on, read_images

QUICK = BenchmarkOptions(seconds=0)
CONFIG = gp.CompressConfig(macs=0.6, epochs=3, batch_size=8, precision="float32", threads=1)


class Scored(nn.Module):
    """A picture and a few facts about it, of which one is an index."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.side = nn.Linear(5, 16)
        self.place = nn.Embedding(7, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, image, facts, place):
        x = self.conv(self.stem(image).relu()).relu().mean((2, 3))
        return self.head(x + self.side(facts).relu() + self.place(place))


def arrays(count=60):
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((count, 3, 8, 8)).astype(np.float32),
        "facts": rng.standard_normal((count, 5)),  # in double precision, as most arrays are
        "place": rng.integers(0, 7, count),
    }


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Scored().eval()


GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
scored (float[rows, 3, 8, 8] image, float[rows, 5] facts, int64[rows] place) => (float[rows, 4] scores)
{
  a = Conv <pads: ints = [1, 1, 1, 1]> (image, stem_weight, stem_bias)
  b = Relu (a)
  c = Conv <pads: ints = [1, 1, 1, 1]> (b, conv_weight, conv_bias)
  d = Relu (c)
  e = ReduceMean <axes: ints = [2, 3], keepdims: int = 0> (d)
  f = Gemm <transB: int = 1> (facts, side_weight, side_bias)
  g = Relu (f)
  h = Gather (place_weight, place)
  i = Add (e, g)
  j = Add (i, h)
  scores = Gemm <transB: int = 1> (j, head_weight, head_bias)
}
"""


@pytest.fixture(scope="module")
def path(net, tmp_path_factory):
    """The network as a file, written by hand."""
    target = tmp_path_factory.mktemp("several") / "net.onnx"
    model = onnx.parser.parse_model(GRAPH)
    for name, tensor in net.state_dict().items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name.replace(".", "_")))
    onnx.save(model, target)
    return target


def test_a_file_of_several_inputs_is_compressed_from_arrays_by_name(path, tmp_path, capsys):
    np.savez(tmp_path / "arrays.npz", **arrays())
    options = ["--macs", "0.6", "--epochs", "3", "--batch-size", "8", "--threads", "1", "--benchmark-seconds", "0"]
    words = ["compress", str(path), "--data", str(tmp_path / "arrays.npz"), *options, "-o", str(tmp_path / "out")]
    assert main(words) == 0
    assert "60 samples" in capsys.readouterr().err
    before, after = (onnx.load(file) for file in (path, tmp_path / "out" / "slim.onnx"))
    assert after.graph.input == before.graph.input
    assert sum(np.prod(t.dims) for t in after.graph.initializer) < sum(
        np.prod(t.dims) for t in before.graph.initializer
    )
    assert main(["verify", str(tmp_path / "out" / "dense.onnx"), str(path)]) == 0

    assert main([*words, "--force", "--epochs", "0", "--quantize", "int8", "--min-agreement", "0.2"]) == 0
    assert (tmp_path / "out" / "slim-int8.onnx").exists()


def test_a_module_of_several_inputs_is_compressed_and_computes_what_its_file_does(net, tmp_path):
    given = {**arrays(), "facts": torch.from_numpy(arrays()["facts"])}
    result = gp.compress(net, given, config=CONFIG, benchmark=QUICK, output=tmp_path / "out")
    dense, slim = result.metrics["models"]
    assert slim["macs"] <= 0.6 * dense["macs"]
    few = {name: array[:3] for name, array in arrays().items()} | {"facts": arrays()["facts"][:3].astype(np.float32)}
    (found,) = ort.InferenceSession(tmp_path / "out" / "slim.onnx").run(None, few)
    with torch.no_grad():
        np.testing.assert_allclose(result.model(*map(torch.from_numpy, few.values())).numpy(), found, atol=1e-4)


@pytest.mark.parametrize("importance", ["apoz", "taylor"])
def test_scores_look_at_arrays_as_well(path, importance):
    graph = gp.trace(gp.load_model(path), tuple(torch.from_numpy(a[:2]) for a in _float(arrays()).values()))
    assert gp.plan(graph, macs=0.6, importance=importance, images=arrays()).removed


def _float(given):
    return given | {"facts": given["facts"].astype(np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"image": a["image"], "place": a["place"]}, r"there is no array for the input 'facts'"),
        (lambda a: a | {"facts": a["facts"][:, :4]}, r"the array for the input 'facts' is 60x4 where the model takes"),
        (lambda a: a | {"facts": a["facts"][:7]}, r"there are 60 samples, and 7 of the input 'facts'"),
        (lambda a: a | {"place": a["place"] * 1.0}, r"the array for the input 'place' holds float64"),
        (lambda a: a | {"facts": a["facts"] * np.nan}, r"'facts' holds numbers that are not finite"),
        (lambda a: a["image"], r"one array, and the model has 3 inputs \('image', 'facts', 'place'\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(path, change, message):
    with pytest.raises(gp.DataError, match=message) as caught:
        gp.compress(path, change(arrays()), config=CONFIG)
    assert "\n" not in str(caught.value)


def test_a_module_says_itself_that_it_does_not_take_these(net):
    with pytest.raises(gp.DataError, match=r"does not take the arrays of .* \('image' \?x3x8x8, 'facts' \?x4"):
        gp.compress(net, arrays() | {"facts": arrays()["facts"][:, :4]}, config=CONFIG)


def test_images_are_not_enough_for_several_inputs(path, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(gp.GraphPruneError, match=r"give an array for each input by name \('image', 'facts', 'place'\)"):
        gp.compress(path, tmp_path / "images", config=CONFIG)
    with pytest.raises(gp.UsageError, match="arrays are taken as they are: `mean`"):
        gp.compress(path, arrays(), config=CONFIG, data=gp.DataOptions(mean=(0.5,)))


def test_an_only_input_that_is_no_image_takes_an_array(tmp_path):
    net = nn.Sequential(nn.Conv1d(2, 16, 3), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    program = torch.export.export(net.eval(), (torch.zeros(2, 2, 8),), dynamic_shapes=({0: torch.export.Dim("n")},))
    np.save(tmp_path / "sounds.npy", np.random.default_rng(0).standard_normal((40, 2, 8)).astype(np.float32))
    sounds = read_images(tmp_path / "sounds.npy", DataOptions(), program)
    assert (len(sounds), sounds.shapes) == (40, {"input": (0, 2, 8)})
    assert capture_on(program, sounds)(torch.zeros(3, 2, 8)).shape == (3, 3)
