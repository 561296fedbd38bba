"""On which device, in which number format and memory layout a run computes, decided by a short measurement.

Channels-last pays for most convolutions on CPUs and is left only where it is clearly slower. bfloat16 autocast pays
where the CPU computes in bfloat16 and the layers are wide enough, and is taken only where it is clearly faster. A CPU
without it is not asked: torch emulates it there, and one step of ResNet56 took 17 times as long as in float32. The wide
margin keeps noise from deciding, so that the same run decides the same again.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.passes.fx.device import device_of, to_device
from graphprune.runtime.device import wait_for

_CLEARLY = 1.25  # ratio of two times that is no accident
_REPEATS = 2


@dataclass(frozen=True)
class Precision:
    """Number format, memory layout and device of forward and backward passes."""

    bfloat16: bool = False
    channels_last: bool = False
    device: str = "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for forward passes."""
        if not self.bfloat16:  # not every kind of device has an autocast
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def images(self, batch: Tensor) -> Tensor:
        """The batch on the device and in the memory layout of the run."""
        batch = batch.to(self.device)
        if self.channels_last and batch.ndim == 4:
            return batch.contiguous(memory_format=torch.channels_last)
        return batch

    def convert_(self, module: fx.GraphModule) -> None:
        """Bring `module` to the device, and its parameters into the memory layout of the run, in place."""
        device = torch.device(self.device)
        if device_of(module) != device:
            to_device(module, device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 4:
                    # `contiguous` leaves those of a single input channel as they are, and strides are all that tells
                    # torch to go on in channels last behind them: activations of one channel have no layout.
                    parameter.data = torch.empty_like(parameter, memory_format=layout).copy_(parameter)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    def __str__(self) -> str:
        name = "bfloat16 autocast" if self.bfloat16 else "float32"
        return f"{name}, channels last" if self.channels_last else name


def choose_precision(
    setting: str, step: Callable[[Precision], None], device: torch.device
) -> tuple[Precision, dict[str, float]]:
    """The fastest candidate that `setting` allows, and the seconds that a step took with each.

    Args:
        setting: "float32" and "bfloat16" fix the format and leave the layout plain, so that a run is the same on
            every machine; "auto" measures.
        step: does one training step the way a `Precision` says, on copies.
        device: where the run computes.
    """
    plain = Precision(device=str(device))
    if setting != "auto":
        return replace(plain, bfloat16=setting == "bfloat16"), {}
    layout = replace(plain, channels_last=True)
    halves = [replace(way, bfloat16=True) for way in (plain, layout)] if has_bfloat16(device) else []
    seconds = _seconds(step, (plain, layout, *halves), device)
    best = plain if seconds[str(layout)] > _CLEARLY * seconds[str(plain)] else layout
    if not halves:
        return best, seconds
    half = replace(best, bfloat16=True)
    return (half if seconds[str(half)] * _CLEARLY < seconds[str(best)] else best), seconds


def has_bfloat16(device: torch.device) -> bool:
    """Does this processor compute in bfloat16, or is it emulated?"""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _seconds(
    step: Callable[[Precision], None], candidates: Sequence[Precision], device: torch.device
) -> dict[str, float]:
    """Seconds of the shortest of a few steps with each candidate, taken in turns.

    On a CPU the time of the processor, not the clock: other work on the machine must not decide. What disturbs a
    measurement only ever makes it longer, hence the shortest.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {str(candidate): [] for candidate in candidates}
    for _ in range(_REPEATS + 1):  # the first round pays for set-up
        for candidate in candidates:
            start = clock()
            step(candidate)
            wait_for(device)
            times[str(candidate)].append(clock() - start)
    return {name: min(values[1:]) for name, values in times.items()}


def in_format(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a number format, where it is one of floating point: integers are indices and the like."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def number_format(module: nn.Module) -> torch.dtype:
    """The format that a model computes in: that of its first parameter of floating point."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
