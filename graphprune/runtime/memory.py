"""What the C library does with freed memory: giving it back to the system, or keeping it for the next step.

Both are about glibc; elsewhere nothing is done.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["freed_memory_kept", "give_back_memory"]

# Settings of mallopt (malloc.h), each with the value inside the block and the one after it. Once one is set, glibc no
# longer adapts its thresholds; they are left where they come to in a process that frees blocks of 32 MB.
_SETTINGS = {
    "M_MMAP_THRESHOLD": (-3, 32 << 20, 32 << 20),
    "M_MMAP_MAX": (-4, 0, 65536),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1, 64 << 20),
}


def give_back_memory() -> None:
    """Return free memory to the system where the C library keeps it (glibc keeps what onnxruntime has freed)."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the process inside the block, and give it back after it.

    A training step frees and allocates the same activations again and again. glibc maps blocks of more than 32 MB anew
    each time (mallopt(3), M_MMAP_THRESHOLD), and the system fills every page of them with zeros: a fifth of a
    step of MobileNetV2 (benchmarks/cifar10/results/memory-time.json).
    """
    setting = _of_libc("mallopt")
    if setting is None:
        yield
        return
    for number, inside, _ in _SETTINGS.values():
        setting(number, inside)
    try:
        yield
    finally:
        for number, _, after in _SETTINGS.values():
            setting(number, after)
        give_back_memory()


def _of_libc(name: str) -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
