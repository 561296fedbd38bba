"""What a measured number must be read with: the processor, its instruction set, and the versions that ran on it.

Onnxruntime chooses its CPU kernels by instruction set. Its float32 convolution works on blocks of 16 channels
with AVX-512 and of 8 on other x86-64 processors; VNNI, AMX and bf16 instructions decide int8 and bf16 speed.
"""

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Machine", "machine_facts"]

_CPUINFO = Path("/proc/cpuinfo")

# Flags as Linux spells them, most capable first; a kernel is chosen by the first level that is present.
_LEVELS = (("avx512f", "avx512"), ("avx2", "avx2"), ("avx", "avx"), ("sse4_1", "sse4.1"), ("asimd", "neon"))
_FEATURES = (
    *("amx_int8", "amx_bf16", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "fma"),  # x86-64
    *("asimddp", "i8mm", "sve"),  # ARM
)
_RUNTIMES = ("onnxruntime", "onnxruntime-openvino", "onnxruntime-gpu", "onnxruntime-directml")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Machine:
    """Facts of this machine and this process that a latency depends on.

    Attributes:
        cpu: The processor's name.
        architecture: `x86_64`, `arm64`, ...
        instruction_set: The widest vector instructions that onnxruntime's kernels use here.
        features: Further instructions that matter to its kernels (VNNI, AMX, bf16, ...).
        conv_block: Channels in one block of onnxruntime's float32 convolution; 1 where it has no blocks.
        physical_cores: Cores without hyper-threads; None when the system does not say.
        logical_cores: Processors this process may run on.
        os: System and release.
        python: Version of Python.
        onnxruntime: Version of onnxruntime, or None.
        onnx: Version of onnx, or None.
        torch: Version of torch when this process has imported it, else None.
        threads: Thread settings in force: environment variables that are set, and torch's own.
    """

    cpu: str
    architecture: str
    instruction_set: str
    features: tuple[str, ...]
    conv_block: int
    physical_cores: int | None
    logical_cores: int
    os: str
    python: str
    onnxruntime: str | None
    onnx: str | None
    torch: str | None
    threads: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "features": list(self.features)}

    def __str__(self) -> str:
        """One line for the foot of a table."""
        cores = f"{self.physical_cores or self.logical_cores} cores"
        return f"{self.cpu}, {self.instruction_set}, {cores}, {self.os}, onnxruntime {self.onnxruntime or 'missing'}"


def machine_facts() -> Machine:
    """Return the facts of this machine; everything that cannot change while the process lives is read once."""
    name, flags, physical = _processor()
    architecture = platform.machine().lower().replace("amd64", "x86_64").replace("aarch64", "arm64")
    level = _instruction_set(flags, architecture)
    torch = sys.modules.get("torch")
    threads = {key: os.environ[key] for key in _THREAD_VARIABLES if key in os.environ}
    if torch is not None:
        threads["torch"] = str(torch.get_num_threads())
    return Machine(
        cpu=name,
        architecture=architecture,
        instruction_set=level,
        features=tuple(f for f in _FEATURES if f.replace("_", "") in flags),
        conv_block=_conv_block(architecture, level),
        physical_cores=physical,
        logical_cores=_usable_processors(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=_version(_RUNTIMES),
        onnx=_version(("onnx",)),
        torch=None if torch is None else str(torch.__version__),
        threads=threads,
    )


@lru_cache(maxsize=1)
def _processor() -> tuple[str, frozenset[str], int | None]:
    """Name, instruction flags (without underscores: the sources differ in them) and number of physical cores."""
    if _CPUINFO.exists():
        name, flags, physical = _parse_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
        if name and flags:
            return name, flags, physical
    # Takes about a second (it runs subprocesses), so it is asked only where the kernel's own list is missing.
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    flags = frozenset(str(f).replace("_", "") for f in info.get("flags", ()))
    return str(info.get("brand_raw") or platform.processor() or "unknown"), flags, None


def _parse_cpuinfo(text: str) -> tuple[str, frozenset[str], int | None]:
    fields: dict[str, str] = {}
    cores = set()
    for block in text.strip().split("\n\n"):
        entry = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if {"physical id", "core id"} <= entry.keys():
            cores.add((entry["physical id"], entry["core id"]))
        fields = entry | fields
    name = re.sub(r"\s+", " ", fields.get("model name", ""))
    flags = fields.get("flags", fields.get("Features", "")).replace("_", "")
    return name, frozenset(flags.split()), len(cores) or None


def _instruction_set(flags: frozenset[str], architecture: str) -> str:
    fallback = "neon" if architecture == "arm64" else "baseline"
    return next((label for flag, label in _LEVELS if flag.replace("_", "") in flags), fallback)


def _conv_block(architecture: str, level: str) -> int:
    if architecture in {"x86_64", "i386", "i686"}:
        return 16 if level == "avx512" else 8
    return 1


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=8)
def _version(distributions: tuple[str, ...]) -> str | None:
    # The metadata is read rather than the package imported: `--version` and reports stay fast.
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
