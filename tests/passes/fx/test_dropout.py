import torch
from torch import nn

from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.dropout import bypass_dropout


def test_a_network_in_training_computes_what_it_does_in_inference():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    images = torch.randn(8, 3, 6, 6)
    module = capture(net.eval(), (images,))
    expected = module(images)
    module.train()
    assert not torch.equal(module(images), expected)
    bypass_dropout(module)
    assert torch.equal(module.train()(images), expected)
