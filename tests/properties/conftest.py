"""Makes the generators importable, and the number of examples the same everywhere and on every run."""

import sys
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "passes" / "onnx")]
torch.set_num_threads(1)
settings.register_profile(
    "networks", derandomize=True, deadline=None, max_examples=30, suppress_health_check=list(HealthCheck)
)
