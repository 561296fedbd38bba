import pytest
import torch
from torch import nn

from graphprune.passes.fx.capture import capture
from graphprune.training.batchnorm import reestimate_batch_norm


@pytest.fixture
def module():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.BatchNorm2d(3))
    return capture(net.eval(), (torch.randn(2, 2, 6, 6),))


def test_the_statistics_are_the_mean_over_the_batches(module):
    batches = [2 + 3 * torch.randn(40, 2, 6, 6) for _ in range(3)]
    reestimate_batch_norm(module, module, batches)
    with torch.no_grad():
        maps = [
            nn.functional.conv2d(b, module.get_parameter("0.weight"), module.get_parameter("0.bias")) for b in batches
        ]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variance = torch.stack([m.transpose(0, 1).flatten(1).var(1) for m in maps]).mean(0)
    torch.testing.assert_close(module.get_buffer("1.running_mean"), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.get_buffer("1.running_var"), variance, rtol=1e-4, atol=1e-5)
    assert not torch.equal(module.get_buffer("3.running_mean"), torch.zeros(3))


def test_instance_norms_have_statistics_too():
    net = nn.InstanceNorm2d(2, momentum=0.3, track_running_stats=True)
    module, batch = capture(net.eval(), (torch.randn(2, 2, 6, 6),)), 2 + 3 * torch.randn(40, 2, 6, 6)
    reestimate_batch_norm(module, module, [batch])
    torch.testing.assert_close(module.get_buffer("running_mean"), batch.mean((0, 2, 3)))
    torch.testing.assert_close(module.get_buffer("running_var"), batch.flatten(2).var(2).mean(0))


def test_batches_count_by_their_size(module):
    small, large = torch.randn(2, 2, 6, 6), 5 + torch.randn(60, 2, 6, 6)
    reestimate_batch_norm(module, module, [large])
    alone = module.get_buffer("1.running_mean").clone()
    reestimate_batch_norm(module, module, [small, large])
    both = module.get_buffer("1.running_mean")
    assert (alone - both).abs().max() < 0.1 * alone.abs().max()


def test_without_images_the_statistics_stay(module):
    before = {name: value.clone() for name, value in module.named_buffers()}
    reestimate_batch_norm(module, module, [])
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())


def test_a_network_without_batch_norm_is_left_alone():
    module = capture(nn.Conv2d(2, 3, 3).eval(), (torch.randn(2, 2, 6, 6),))
    reestimate_batch_norm(module, module, iter(lambda: pytest.fail("no image is needed"), None))


def test_a_mean_over_all_batches_is_measured_anew_and_frozen_statistics_are_not():
    layers = nn.BatchNorm2d(2, momentum=None), nn.BatchNorm2d(2, momentum=0.0)
    module = capture(nn.Sequential(*layers).eval(), (torch.randn(2, 2, 6, 6),))
    reestimate_batch_norm(module, module, [5 + 2 * torch.randn(60, 2, 6, 6)])
    assert (module.get_buffer("0.running_mean") - 5).abs().max() < 0.5
    assert torch.equal(module.get_buffer("1.running_mean"), torch.zeros(2))


def test_a_norm_that_is_used_several_times_gets_the_statistics_of_one_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(2, momentum=0.3)

        def forward(self, x):
            return self.norm(x) + self.norm(x.flip(3)) + self.norm(x.flip(2))

    module = capture(Twice().eval(), (torch.randn(2, 2, 6, 6),))
    images = 5 + 2 * torch.randn(60, 2, 6, 6)
    reestimate_batch_norm(module, module, [images])
    torch.testing.assert_close(module.get_buffer("norm.running_mean"), images.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        module.get_buffer("norm.running_var"), images.transpose(0, 1).flatten(1).var(1), rtol=1e-4, atol=1e-4
    )
