"""Running statistics of normalizations measured anew, with the final weights.

During training the running statistics lag behind the weights and mix in groups that are zero by now. At the end they
are replaced by the mean over many batches of what the trained network really sees.

Source: Sun et al. 2019, "Hybrid 8-bit floating point training", section 4, and NNCF's BatchNorm adaptation.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from graphprune.data.batches import Batch, tensors_of

if TYPE_CHECKING:
    from graphprune.passes.fx.captured import CapturedModule

_NORMS = (torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default)
_RUNNING_MEAN, _RUNNING_VAR, _MOMENTUM = 3, 4, 6  # positions among their arguments


@torch.no_grad()
def reestimate_batch_norm(module: "CapturedModule", forward: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the running mean and variance of every BatchNorm in `module` by their mean over `batches`.

    Those of InstanceNorm likewise. A network without any, and one that is given no batch, stays as it is.

    Args:
        module: the captured network; its buffers are changed in place.
        forward: what to run: `module`, or a network that shares its buffers; left in train mode.
        batches: inputs, already in the memory layout of the run.
    """
    buffers = _statistics(module)
    if not buffers:
        return
    forward.train()
    before = {name: module.get_buffer(name).clone() for name in buffers}
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in before.items()}
    count = 0
    for batch in batches:
        # From zero, one forward pass leaves weight * statistic of the batch in the buffer.
        for name in buffers:
            module.get_buffer(name).zero_()
        forward(*tensors_of(batch))
        for name, weight in buffers.items():
            sums[name] += module.get_buffer(name).double() / weight * len(batch)
        count += len(batch)
    for name, value in before.items():
        module.get_buffer(name).copy_(sums[name] / count if count else value)


def _statistics(module: "CapturedModule") -> dict[str, float]:
    """Name of every running mean and variance, with the weight that what it sees in one forward pass has in it.

    That is the momentum, and 1 - (1 - momentum)^k where k layers share it or one is used k times.
    """
    found: dict[str, float] = {}
    for node in module.graph.nodes:
        if node.target in _NORMS and node.args[_MOMENTUM] > 0:
            for argument in (node.args[_RUNNING_MEAN], node.args[_RUNNING_VAR]):
                if argument is not None:
                    name = str(argument.target)
                    before = found.get(name, 0.0)
                    found[name] = before + (1 - before) * float(node.args[_MOMENTUM])
    return found
