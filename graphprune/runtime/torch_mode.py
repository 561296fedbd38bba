"""Settings of torch that hold for a while: evaluation mode of a module, number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

__all__ = ["evaluation", "torch_threads"]


@contextmanager
def evaluation(module: nn.Module) -> Iterator[nn.Module]:
    """Hold `module` in evaluation mode inside the block, and give every submodule its own mode back after it."""
    modes = {part: part.training for part in module.modules()}
    _set_mode(module, training=False)
    try:
        yield module
    finally:
        _set_mode(module, training=modes[module])
        for part, mode in modes.items():
            part.training = mode


def _set_mode(module: nn.Module, *, training: bool) -> None:
    # The module of an exported program refuses: its mode was fixed when it was exported.
    with suppress(NotImplementedError):
        module.train(training)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block; 0 leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
