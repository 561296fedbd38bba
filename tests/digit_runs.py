"""Runs of the engine on a small residual network that has learned handwritten digits."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from graphprune.config import CompressConfig
from graphprune.data import ImageSource, Preprocess
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.training.engine import Engine

SETTINGS = CompressConfig(macs=0.5, epochs=5, batch_size=32, flip=False, crop=False, precision="float32", threads=1)


class Net(nn.Module):
    """Two residual stages on 8x8 digits."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 10))

    def features(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.down(F.relu(x + self.a(x)))
        return F.relu(x + self.b(x))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class TwoOutputs(Net):
    """Dense prediction: a map and a vector."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        features = self.features(x)
        return {"map": self.map(features), "vector": self.head(features.mean((2, 3)))}


@cache
def digits():
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))  # the file is sorted by writer
    return (pixels.reshape(-1, 8, 8, 1) * 15.9).astype(np.uint8)[order], labels.astype(np.int64)[order]


def images(count=800):
    return ImageSource(digits()[0][:count], Preprocess((8, 8), mean=(0.3,), std=(0.35,), channels=1))


@cache
def trained():
    """State of a network trained with labels: the only place where labels are used."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, x, y = Net(), torch.from_numpy(images().batch(slice(None))), torch.from_numpy(digits()[1][:800])
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(8):
        for chosen in torch.randperm(800).split(40):
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return net.eval().state_dict()


@cache
def teacher(kind=Net):
    net = kind()
    net.load_state_dict(trained(), strict=False)
    captured = capture(net.eval(), (torch.randn(2, 1, 8, 8),))
    return captured, analyze(captured)


def engine(config=SETTINGS, kind=Net, count=800, **options):
    captured, graph = teacher(kind)
    return Engine(captured, graph, images(count), config, **options)


@cache
def compressed():
    return engine().run()[0]


def accuracy(state_dict):
    net = Net()
    net.load_state_dict(state_dict)
    x = torch.from_numpy(ImageSource(digits()[0][800:], images().preprocess).batch(slice(None)))
    with torch.no_grad():
        return float((net.eval()(x).argmax(1).numpy() == digits()[1][800:]).mean())
