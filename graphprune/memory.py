"""Giving memory back to the system between two steps that each need as much as a model has."""

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Free what nobody refers to any more, and return free memory to the system where the C library keeps it.

    Graphs refer to themselves, so that their weights would stay mapped until Python happens to look for cycles; and
    glibc keeps what onnxruntime has freed. Measured on ResNet50 (102 MB): the peak of a slimming falls by 150 MB.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
