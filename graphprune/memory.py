"""Giving memory back to the system between two steps that each need as much as a model has."""

import ctypes
import sys


def give_back_memory() -> None:
    """Return free memory to the system where the C library keeps it (glibc keeps what onnxruntime has freed)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
