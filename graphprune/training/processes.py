"""Several processes that train as one: each takes its part of every batch, and all come to the same weights.

Started by Hugging Face accelerate (`accelerate launch -m graphprune compress ...`) or torchrun. The loss of a step is
the mean over the processes; its gradient is that of one process with the whole batch, also through batch normalization,
whose statistics are those of the whole batch. So all processes draw the same sets and none has to be told.

Source: Ioffe & Szegedy 2015, "Batch normalization"; synchronized as in Peng et al. 2018, "MegDet", section 3.3.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx

from graphprune.data.batches import Batch, parts_of
from graphprune.importance.output_loss import in_full
from graphprune.passes.fx import captured
from graphprune.passes.fx.device import CPU
from graphprune.runtime.device import resolve_device

__all__ = ["Processes", "synchronize_batch_norm"]

aten = torch.ops.aten

# That the others wait for the first one, which alone measures latencies and searches; torch's default is half an hour.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: number of this process; 0 writes files and speaks.
        world: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @staticmethod
    def join(device: str = "cpu") -> "Processes":
        """Meet the other processes, if this one was started as one of several.

        Args:
            device: as `graphprune.runtime.device.resolve_device` takes it; of several CUDA devices each process of a
                machine takes its own.

        Raises:
            UsageError: there is no such device.
        """
        found = resolve_device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Processes(device=found)
        if found.type == "cuda":
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            torch.cuda.set_device(found)
        if not dist.is_initialized():
            _initialize(found)
        return Processes(dist.get_rank(), dist.get_world_size(), found)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def part(self, batch: Batch) -> Batch:
        """This process's images of a batch."""
        return batch if self.world == 1 else parts_of(batch, -(-len(batch) // self.world))[self.rank]

    def mean_gradients_(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, values in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(values.view(gradient.shape))

    def mean(self, *values: float) -> list[float]:
        """Mean of numbers over the processes."""
        if self.world == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found)
        return [float(value) for value in found / self.world]

    def first(self, value: Any) -> Any:
        """What the first process holds, in all of them."""
        if self.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]


def _initialize(device: torch.device) -> None:
    try:
        from accelerate import PartialState
    except ImportError:  # torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        return
    PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)


def synchronize_batch_norm(module: fx.GraphModule) -> None:
    """Let every normalization of a captured graph take its statistics over all processes, in place."""
    for node in module.graph.nodes:
        node.target = _SYNCHRONIZED.get(node.target, node.target)
    module.recompile()


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Batch normalization with statistics of all processes. Shapes: x: (batch, channels, ...)."""
    if not training and running_mean is not None:
        return aten.batch_norm.default(x, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled)
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() // x.shape[1] * dist.get_world_size()
    full = in_full(x)  # as torch does: x is bfloat16 under autocast, statistics and weights are not
    mean = _sum_over_processes(full.sum(dims)) / count
    centered = full - mean.view(shape)
    variance = _sum_over_processes(centered.square().sum(dims)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
            unbiased = variance.detach() * count / max(1, count - 1)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    result = centered * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        result = result * weight.view(shape)
    return (result if bias is None else result + bias.view(shape)).to(x.dtype)


def _summed(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total


class _Sum(torch.autograd.Function):
    """The sum over processes, through which gradients flow back to all of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


_sum_over_processes: Callable[[Tensor], Tensor] = _Sum.apply


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Instance normalization with running statistics of all processes. Shapes: x: (batch, channels, ...)."""
    result = aten.instance_norm.default(
        x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled
    )
    for buffer in (running_mean, running_var) if use_input_stats else ():
        if buffer is not None:
            buffer.copy_(_summed(buffer) / dist.get_world_size())
    return result


_SYNCHRONIZED = {aten.batch_norm.default: _batch_norm, aten.instance_norm.default: _instance_norm}
for _operator, _function in _SYNCHRONIZED.items():
    captured.switch_like(_function, _operator)
