"""The ONNX network of an example."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.errors import RuleError
from graphprune.passes.onnx.analyze import OnnxFrontEnd, trace_onnx
from graphprune.passes.onnx.cut import mask_groups, remove_groups
from graphprune.passes.onnx.model import load_model
from graphprune.passes.onnx.quantized import real
from graphprune.runtime.onnx_session import open_session, with_outputs
from graphprune.testing.example import Kernel
from graphprune.testing.network import Applied, Arrays, Network


class OnnxNetwork(Network):
    """A model with its inputs, run in onnxruntime, or where it has no kernels by onnx's reference implementation."""

    vocabulary = "ONNX"

    def __init__(
        self,
        source: onnx.ModelProto | str | os.PathLike[str],
        feeds: Mapping[str, np.ndarray] | Sequence[np.ndarray],
        kernels: Mapping[str, Kernel],
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graphprune-")
        self._path = Path(self._folder.name) / "example.onnx"
        if isinstance(source, onnx.ModelProto):
            onnx.save(source, self._path)
        else:
            self._path = Path(source)
        self.kernels = [_stand_in(name, function) for name, function in kernels.items()]
        self.model = load_model(self._path)
        self.graph = trace_onnx(self.model)
        given = [value.name for value in self.model.graph.inputs if not value.is_initializer()]
        self.feeds = dict(feeds) if isinstance(feeds, Mapping) else dict(zip(given, feeds, strict=True))

    def weights(self) -> Mapping[str, NDArray[Any]]:
        """See `Network`."""
        front: OnnxFrontEnd = self.graph.front_end
        return {name: real(value) for name, value in front.names.items()}

    def applied(self, rule: str) -> list[Applied]:
        """See `Network`."""
        front: OnnxFrontEnd = self.graph.front_end
        return [
            Applied(op, tuple(str(v.name) for v in node.outputs), tuple(front.env[v] for v in node.outputs))
            for node, (held, _, op) in front.ops.items()
            if held.name == rule
        ]

    def dense(self) -> Arrays:
        """See `Network`."""
        return self._run(self.model, ())[0]

    def masked(self, removed: Mask, names: Sequence[str]) -> tuple[Arrays, dict[str, NDArray[Any]]]:
        """See `Network`."""
        graph = self._again()
        mask_groups(graph, removed)
        return self._run(graph.front_end.model, names)

    def cut(self, removed: Mask) -> Mapping[str, Arrays]:
        """See `Network`."""
        graph = self._again()
        remove_groups(graph, removed)
        return {"cut": self._run(graph.front_end.model, ())[0]}

    def _again(self) -> ChannelGraph:
        """The same analysis of a model that may be changed."""
        return trace_onnx(load_model(self._path))

    def _run(self, model: ir.Model, names: Sequence[str]) -> tuple[Arrays, dict[str, NDArray[Any]]]:
        own = [str(value.name) for value in model.graph.outputs]
        content = with_outputs(ir.to_proto(model), names)
        wanted = [*own, *(name for name in names if name not in own)]
        runner: Any
        if self.kernels:
            runner = ReferenceEvaluator(onnx.load_model_from_string(content), new_ops=self.kernels)
        else:
            runner = open_session(content, optimize=False, name="the example")
        found = dict(zip(wanted, runner.run(wanted, self.feeds), strict=True))
        return [np.asarray(found[name]) for name in own], {name: np.asarray(found[name]) for name in names}


def _stand_in(name: str, function: Kernel) -> type[OpRun]:
    """An operator of onnx's reference implementation that calls a function."""
    domain, _, kind = name.rpartition("::" if "::" in name else ".")
    if not domain:
        raise RuleError(f"kernels: '{name}' has no domain: write com.example::Op")

    def run(self: OpRun, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        attributes = {a.name: getattr(self, a.name) for a in self.onnx_node.attribute}
        result = function(*inputs, **attributes)
        return result if isinstance(result, tuple) else (result,)

    return type(kind, (OpRun,), {"op_domain": domain, "_run": run})
