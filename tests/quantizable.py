"""Small networks, as modules and as text, and images, for the tests of int8."""

import numpy as np
import onnx
import onnx.parser
import torch
from onnx import numpy_helper
from torch import nn

import graphprune as gp
from graphprune.data import ImageSource, Preprocess
from graphprune.int8.quantize import QuantizeOptions
from graphprune.verification.model_runner import open_runner

SIZE = 8
QUICK = QuantizeOptions(calibration_images=32, search_images=64, min_agreement=0.0)


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


def answers(path, images):
    return open_runner(path).run([images.batch(slice(None))])[0]


def parsed(folder, text, opset=18, **literals):
    """A file of a graph as text; literals that have no numbers in it are given, or random and small."""
    path = folder / "m.onnx"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        kind = value.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim]
        numbers = literals.get(value.name)
        if numbers is None:
            numbers = rng.standard_normal(sizes) / np.sqrt(max(1, np.prod(sizes[1:])))
        numbers = np.asarray(numbers).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        model.graph.initializer.append(numpy_helper.from_array(numbers, value.name))
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def noise(path, count=12, seed=1):
    """Arrays for all inputs of a file, with so many samples where the batch is open."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in onnx.load(path).graph.input:
        kind = value.type.tensor_type
        sizes = [dim.dim_value or count for dim in kind.shape.dim]
        numbers = rng.standard_normal(sizes) if kind.elem_type == onnx.TensorProto.FLOAT else rng.integers(0, 9, sizes)
        found[value.name] = numbers.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return found


def errors(source, target, inputs):
    """Squared error of all outputs relative to their spread, with onnxruntime's optimization and without."""
    expected = open_runner(source).run(list(inputs.values()))
    worst = []
    for optimize in (True, False):
        found = open_runner(target, optimize=optimize).run(list(inputs.values()))
        gaps = [
            ((b - a) ** 2).sum() / max(((a - a.mean()) ** 2).sum(), 1e-9) for a, b in zip(expected, found, strict=True)
        ]
        worst.append(float(max(gaps)))
    return worst
