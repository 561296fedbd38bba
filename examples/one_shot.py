"""Prune at once, without data or training: plan, mask, slim, export, and look at what it brings.

A one-shot plan costs accuracy; it is for a first look at size and speed, and for models that are trained on elsewhere.

Run it: python examples/one_shot.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import graphprune as gp


class Net(nn.Module):
    """A network as anybody would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits. Shapes: x: (batch, 3, height, width); returns (batch, 10)."""
        x = self.stem(x)
        return self.head((x + self.block(x)).mean((2, 3)))


def main(folder: Path) -> None:
    """Take half of the inner channels out of a network, and prove that nothing else has changed."""
    torch.manual_seed(0)
    model = Net().eval()
    inputs = (torch.randn(4, 3, 32, 32),)

    graph = gp.trace(model, inputs)
    plan = gp.plan(graph, ratio=0.5, importance="l2", freeze=["stem"])
    plan.save(folder / "plan.json")

    masked = gp.mask(model, plan)  # the same shapes, the planned channels zero
    slim = gp.slim(model, plan, inputs)  # without those channels; raises VerificationError if it computed anything else
    with torch.no_grad():
        difference = (masked(*inputs) - slim(*inputs)).abs().max()
    print(f"{type(slim).__name__}: largest difference between masked and slim {difference:.1e}")
    for name, net in (("dense", model), ("slim", slim)):
        print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
        gp.export_onnx(net, inputs, folder / f"{name}.onnx", force=True)

    report = gp.benchmark({"dense": folder / "dense.onnx", "slim": folder / "slim.onnx"}, min_seconds=0.3)
    for timing in report.models:
        print(f"{timing.name}: {timing.median_ms:.3f} ms {timing.verdict}")

    # The plan also cuts the file that was exported before: no torch is needed for that.
    cut = gp.slim_onnx(folder / "dense.onnx", folder / "cut.onnx", folder / "plan.json", force=True)
    print(f"the ONNX file, cut by the same plan: {cut.params_before:,} -> {cut.params_after:,} weights")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "one-shot")
    target.mkdir(parents=True, exist_ok=True)
    main(target)
