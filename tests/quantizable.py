"""A small network with a residual connection, and images, for the tests of int8."""

import numpy as np
import torch
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
