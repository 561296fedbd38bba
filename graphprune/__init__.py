"""GraphPrune: make a trained CNN faster on CPUs, from unlabelled images alone.

The public names are imported on first use, so that `import graphprune` costs nothing and the ONNX pass
runs on a machine without torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.version import __version__

if TYPE_CHECKING:
    from graphprune.errors import GraphPruneError

# In a checkout, Python started at the top of the tree finds this folder before the installed package;
# `passes` and `cli` then lie beside it and not inside it.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").exists() and (_ROOT / "passes" / "__init__.py").exists():
    __path__.append(str(_ROOT))

_HOMES = {
    "GraphPruneError": "graphprune.errors",
}

__all__ = ["GraphPruneError", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
