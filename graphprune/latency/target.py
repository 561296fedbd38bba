"""What a network is to be fast on: the way onnxruntime will run it."""

from dataclasses import asdict, dataclass
from typing import Any

from graphprune.passes.errors import UsageError
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_session import CPU

__all__ = ["LatencyTarget"]


@dataclass(frozen=True)
class LatencyTarget:
    """How the file will be run.

    Attributes:
        threads: threads inside one operator.
        batch: samples in one run.
        provider: execution provider of onnxruntime.
    """

    threads: int = 1
    batch: int = 1
    provider: str = CPU

    def __post_init__(self) -> None:
        for name in ("threads", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"the {name} of the latency to reach must be at least 1, not {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def key(self) -> dict[str, Any]:
        """Everything beside the network that a latency depends on; what measurements are cached under."""
        machine = machine_facts()
        facts = ("cpu", "instruction_set", "features", "onnxruntime", "logical_cores")
        return {**self.to_dict(), **{name: machine.to_dict()[name] for name in facts}}
