"""In which number format and memory layout a run computes, decided by a short measurement on the machine at hand.

Channels-last pays for most convolutions on CPUs and is left only where it is clearly slower. bfloat16 autocast pays
where the CPU computes in bfloat16 and the layers are wide enough, and is taken only where it is clearly faster. A CPU
without it is not asked: torch emulates it there, and one step of ResNet56 took 17 times as long as in float32. The wide
margin keeps noise from deciding, so that the same run decides the same again.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CLEARLY = 1.25  # ratio of two times that is no accident
_REPEATS = 2


@dataclass(frozen=True)
class Precision:
    """Number format and memory layout of forward and backward passes."""

    bfloat16: bool = False
    channels_last: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for forward passes."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)

    def images(self, batch: Tensor) -> Tensor:
        """The batch in the memory layout of the run."""
        if self.channels_last and batch.ndim == 4:
            return batch.contiguous(memory_format=torch.channels_last)
        return batch

    def convert_(self, module: nn.Module) -> None:
        """Bring the parameters of `module` into the memory layout of the run, in place."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=layout)

    def to_dict(self) -> dict[str, bool]:
        """Plain values for a checkpoint."""
        return asdict(self)

    def __str__(self) -> str:
        name = "bfloat16 autocast" if self.bfloat16 else "float32"
        return f"{name}, channels last" if self.channels_last else name


def choose_precision(setting: str, step: Callable[[Precision], None]) -> tuple[Precision, dict[str, float]]:
    """The fastest candidate that `setting` allows, and the CPU seconds that a step took with each.

    Args:
        setting: "float32" and "bfloat16" fix the format and leave the layout plain, so that a run is the same on
            every machine; "auto" measures.
        step: does one training step the way a `Precision` says, on copies.
    """
    if setting != "auto":
        return Precision(bfloat16=setting == "bfloat16"), {}
    plain, layout = Precision(), Precision(channels_last=True)
    halves = (Precision(bfloat16=True), Precision(bfloat16=True, channels_last=True)) if has_bfloat16() else ()
    seconds = _seconds(step, (plain, layout, *halves))
    best = plain if seconds[str(layout)] > _CLEARLY * seconds[str(plain)] else layout
    if not halves:
        return best, seconds
    half = Precision(bfloat16=True, channels_last=best.channels_last)
    return (half if seconds[str(half)] * _CLEARLY < seconds[str(best)] else best), seconds


def has_bfloat16() -> bool:
    """Does this CPU compute in bfloat16, or is it emulated?"""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _seconds(step: Callable[[Precision], None], candidates: Sequence[Precision]) -> dict[str, float]:
    """CPU seconds of the shortest of a few steps with each candidate, taken in turns.

    CPU time, not the clock: other work on the machine must not decide. What disturbs a measurement only ever makes it
    longer, hence the shortest.
    """
    times: dict[str, list[float]] = {str(candidate): [] for candidate in candidates}
    for _ in range(_REPEATS + 1):  # the first round pays for set-up
        for candidate in candidates:
            start = time.process_time()
            step(candidate)
            times[str(candidate)].append(time.process_time() - start)
    return {name: min(values[1:]) for name, values in times.items()}
