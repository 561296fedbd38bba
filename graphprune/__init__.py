"""GraphPrune: make a trained CNN faster on CPUs, from unlabelled images alone.

    import graphprune as gp
    graph = gp.trace(model, example_inputs)            # which channels can only be removed together
    plan = gp.plan(graph, ratio=0.5)                   # a one-shot plan, from the weights alone
    slim = gp.slim(model, plan)                        # a new model without those channels, verified
    result = gp.compress(model, "images/", macs=0.5, output="out/")   # trained from a teacher, exported, measured

The public names are imported on first use, so that `import graphprune` costs nothing and the ONNX pass
runs on a machine without torch.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from graphprune.version import __version__

# In a checkout, Python started at the top of the tree finds this folder before the installed package;
# `passes` and `cli` then lie beside it and not inside it.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").exists() and (_ROOT / "passes" / "__init__.py").exists():
    __path__.append(str(_ROOT))

if TYPE_CHECKING:
    from graphprune.api import plan, trace
    from graphprune.compress import BenchmarkOptions, CompressResult, DataOptions, compress
    from graphprune.config import CompressConfig
    from graphprune.data import ImageSource, load_images
    from graphprune.errors import (
        BudgetError,
        CaptureError,
        DataError,
        GraphPruneError,
        MissedBudgetError,
        ModelLoadError,
        OutputExistsError,
        PlanError,
        RuleError,
        TrainingError,
        UnfinishedError,
        UnsupportedModelError,
        UsageError,
        VerificationError,
    )
    from graphprune.formats.export import export_onnx
    from graphprune.formats.loading import load_model
    from graphprune.formats.saving import load, save
    from graphprune.int8.quantize import QuantizeOptions, QuantizeReport, quantize_onnx
    from graphprune.latency.target import LatencyTarget
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.channels.plan import PruningPlan
    from graphprune.passes.channels.register import register_rule
    from graphprune.passes.fx.slim import mask, slim
    from graphprune.reconstruction.reconstruct import Reconstructed, reconstruct
    from graphprune.report.profile import profile
    from graphprune.runtime.benchmark import benchmark, benchmark_grid
    from graphprune.slimming import SlimReport, slim_onnx
    from graphprune.training.sparse_trainer import SparseTrainer

__all__ = [
    "BenchmarkOptions",
    "BudgetError",
    "CaptureError",
    "ChannelGraph",
    "CompressConfig",
    "CompressResult",
    "DataError",
    "DataOptions",
    "GraphPruneError",
    "ImageSource",
    "LatencyTarget",
    "MissedBudgetError",
    "ModelLoadError",
    "OutputExistsError",
    "PlanError",
    "PruningPlan",
    "QuantizeOptions",
    "QuantizeReport",
    "Reconstructed",
    "RuleError",
    "SlimReport",
    "SparseTrainer",
    "TrainingError",
    "UnfinishedError",
    "UnsupportedModelError",
    "UsageError",
    "VerificationError",
    "__version__",
    "benchmark",
    "benchmark_grid",
    "compress",
    "export_onnx",
    "load",
    "load_images",
    "load_model",
    "mask",
    "plan",
    "profile",
    "quantize_onnx",
    "reconstruct",
    "register_rule",
    "save",
    "slim",
    "slim_onnx",
    "trace",
]

_HOMES = {
    "BenchmarkOptions": "compress",
    "ChannelGraph": "passes.channels.graph",
    "CompressConfig": "config",
    "CompressResult": "compress",
    "DataOptions": "compress",
    "ImageSource": "data",
    "LatencyTarget": "latency.target",
    "SparseTrainer": "training.sparse_trainer",
    "PruningPlan": "passes.channels.plan",
    "QuantizeOptions": "int8.quantize",
    "QuantizeReport": "int8.quantize",
    "SlimReport": "slimming",
    "benchmark": "runtime.benchmark",
    "benchmark_grid": "runtime.benchmark",
    "compress": "compress",
    "export_onnx": "formats.export",
    "load": "formats.saving",
    "load_images": "data",
    "load_model": "formats.loading",
    "mask": "passes.fx.slim",
    "plan": "api",
    "profile": "report.profile",
    "quantize_onnx": "int8.quantize",
    "Reconstructed": "reconstruction.reconstruct",
    "reconstruct": "reconstruction.reconstruct",
    "register_rule": "passes.channels.register",
    "save": "formats.saving",
    "slim": "passes.fx.slim",
    "slim_onnx": "slimming",
    "trace": "api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
    value = getattr(import_module(f"graphprune.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `graphprune.compress` the function when the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


#: Modules that have moved and that an example once imported: old name -> the module that it stands for.
_MOVED = {
    "graphprune.architecture": "graphprune.formats.architecture",
    "graphprune.files": "graphprune.formats.files",
    "graphprune.loading": "graphprune.formats.loading",
    "graphprune.memory": "graphprune.runtime.memory",
}


class _Moved:
    """Finds modules under their old names, after all other ways have failed, and warns."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, cast(Any, _Moved)) if name in _MOVED else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """As usual: the module that `exec_module` replaces."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        old = module.__name__
        warnings.warn(f"{old} is {_MOVED[old]} now", DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(_MOVED[old])


if not any(getattr(finder, "__name__", "") == "_Moved" for finder in sys.meta_path):
    sys.meta_path.append(cast(Any, _Moved))
