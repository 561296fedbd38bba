"""The device that networks are trained on; everything that is deployed and measured stays on the CPU."""

import torch

from graphprune.passes.errors import UsageError

__all__ = ["resolve_device", "wait_for"]


def resolve_device(setting: str) -> torch.device:
    """The device that a setting names.

    Args:
        setting: "auto" is the first CUDA device if there is one, and else the CPU; otherwise as torch writes it, as in
            "cpu", "cuda", "cuda:1", "mps".

    Raises:
        UsageError: there is no such device, or none that computes ("meta").
    """
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=setting)
        probe.item()  # not all that torch has a name for can hold numbers
        return probe.device  # with its number
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without CUDA
        raise UsageError(
            f"`device={setting!r}` cannot be used here: {str(error).splitlines()[0].rstrip('.')}; give cpu, or auto"
        ) from error


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was told, where it works on its own: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
