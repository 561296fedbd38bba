"""An operator of one's own: a rule for it is registered once, and holds in torch and in ONNX.

The operator is an activation with a slope for each channel. In torch it comes from a library (`torch.library`), in ONNX
from a domain, as a function. Without a rule it is unknown, and the channels that it touches stay.

Run it: python examples/custom_operator.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from onnxscript import opset18 as op
from torch import Tensor, nn

import graphprune as gp
from graphprune.passes.channels import patterns
from graphprune.testing import Example, check_rule, randomize


@torch.library.custom_op("mylib::slope", mutates_args=())
def slope(x: Tensor, weight: Tensor) -> Tensor:
    """Return x where it is positive, else x times the slope of its channel. Shapes: (N, C, H, W) and (C,)."""
    return torch.where(x > 0, x, x * weight[:, None, None])


@slope.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


def slope_in_onnx(x: object, weight: object) -> object:
    """Write the operator for the exporter."""
    column = op.Unsqueeze(weight, op.Constant(value_ints=[1, 2]))
    return op.Where(op.Greater(x, op.Constant(value_float=0.0)), x, op.Mul(x, column))


class Net(nn.Module):
    """A network that uses the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.slope = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map. Shapes: x: (batch, 3, height, width); returns (batch, 8, height, width)."""
        return self.last(torch.ops.mylib.slope(self.first(x), self.slope))


def register() -> None:
    """Say how its channels are coupled: each alone, with a number of its own, and zero where the input is."""
    gp.register_rule(
        "slope",
        patterns.per_channel("weight", zero=patterns.first_zero),
        torch="mylib::slope",
        onnx="com.example::Slope",
        to_onnx=slope_in_onnx,
    )


def in_torch(folder: Path) -> None:
    """Slim the network, export it, and run the file."""
    model, inputs = randomize(Net()), (torch.randn(2, 3, 16, 16),)
    print("without a rule:", gp.trace(model, inputs).unknown)
    register()
    graph = gp.trace(model, inputs)
    print(f"with one: {graph.n_groups} groups, of which the first is {[m.parameter for m in graph.groups[0].members]}")

    # Is the rule right? Cut and masked network are compared, and the groups are those that we expect.
    members = ("first.weight/0", "first.bias/0", "slope/0", "last.weight/1")
    groups = [" ".join(f"{member}[{channel}]" for member in members) for channel in range(16)]
    print(check_rule("slope", Example(model, inputs, groups=groups)))

    slim = gp.slim(model, gp.plan(graph, ratio=0.5), inputs)
    path = gp.export_onnx(slim, inputs, folder / "slim.onnx", force=True)
    (output,) = ort.InferenceSession(str(path)).run(None, {"input": inputs[0].numpy()})
    with torch.no_grad():
        difference = float(np.abs(slim(*inputs).numpy() - output).max())
    print(f"{sum(p.numel() for p in slim.parameters())} parameters are left; onnxruntime differs by {difference:.0e}")


FILE = """
<ir_version: 9, opset_import: ["": 18, "com.example": 1]>
net (float[n, 3, 16, 16] x) => (float[n, 8, 16, 16] out) {
  a = Conv<pads=[1, 1, 1, 1]>(x, first)
  b = com.example.Slope(a, slope)
  out = Conv<pads=[1, 1, 1, 1]>(b, last)
}
<domain: "com.example", opset_import: ["": 18]>
Slope (x, weight) => (y) {
  axes = Constant<value_ints=[1, 2]>()
  zero = Constant<value_float=0.0>()
  column = Unsqueeze(weight, axes)
  scaled = Mul(x, column)
  positive = Greater(x, zero)
  y = Where(positive, x, scaled)
}
"""


def in_onnx(folder: Path) -> None:
    """Slim a file with the operator as a function of its own domain, which onnxruntime runs."""
    model = onnx.parser.parse_model(FILE)
    rng = np.random.default_rng(0)
    for name, shape in {"first": (16, 3, 3, 3), "slope": (16,), "last": (8, 16, 3, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.save(model, folder / "net.onnx")
    report = gp.slim_onnx(folder / "net.onnx", folder / "net-slim.onnx", ratio=0.5, force=True)
    left = [
        f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in onnx.load(folder / "net-slim.onnx").graph.node
    ]
    print(f"the file: {report.params_before} -> {report.params_after} weights, still made of {', '.join(left)}")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "custom-operator")
    target.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    in_torch(target)
    in_onnx(target)
