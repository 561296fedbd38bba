"""Freed memory is kept while it will be needed again, and given back afterwards."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")

# A block above the largest threshold below which glibc keeps what was freed.
_TRIAL = """
import contextlib, resource, sys
import numpy as np
from graphprune.runtime.memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.empty(40 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

plain = faults()
with freed_memory_kept():
    faults()
    kept, held = faults(), resident()
print(plain, kept, held, resident())
"""


def test_blocks_are_used_again_and_given_back_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, text=True, check=True)
    plain, kept, held, resident = map(int, done.stdout.split())
    assert plain >= 4 * (40 << 20) // (2 << 20)  # every page anew, of 4 KiB or of 2 MiB
    assert kept < plain / 10
    assert held - resident >= 30
