"""From a trained student to files that are known to compute what it does.

    student (dense shapes, planned channels zero) = masked model = slim model = slim.onnx = slim.pt2, on real images

and the multiply-accumulates counted in the ONNX files are those that the cost model said.
"""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from graphprune.api import plan
from graphprune.engine import Engine, StudentResult
from graphprune.export import export_onnx
from graphprune.onnx_cost import onnx_cost
from graphprune.passes.channels.labels import Mask
from graphprune.passes.errors import VerificationError
from graphprune.passes.fx.capture import CapturedModule
from graphprune.passes.fx.slim import mask, slim
from graphprune.saving import load, save
from graphprune.verify import Comparison, require_equal
from graphprune.version import __version__

__all__ = ["Delivery", "count_parameters"]

logger = logging.getLogger("graphprune")

_EXAMPLES = 8
_CHECKED_IMAGES = 128


class Delivery:
    """The files of one run.

    Attributes:
        engine: the run.
        graph: channel groups of the model.
        dense: the captured model as it came.
        slim_model: what is left of the student, once it is cut.
        folder: where the files are written.
        files: the ONNX files, "dense" and "slim".
        comparisons: by the name of what was compared with what came before it.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.graph = engine.graph
        self.folder = folder
        self.comparisons: dict[str, Comparison] = {}
        self.files = {name: folder / f"{name}.onnx" for name in ("dense", "slim")}
        # The graph's own copy: that of the engine may be in another memory layout.
        self.dense: CapturedModule = engine.graph.front_end.module
        source = engine.held_out
        self._images = source.batch(slice(0, _CHECKED_IMAGES))
        self._example = (torch.from_numpy(source.batch(np.arange(_EXAMPLES) % len(source))),)
        self._metadata = {
            "graphprune_version": __version__,
            "graphprune_preprocessing": json.dumps(source.preprocess.to_dict()),
        }

    def rehearse(self) -> None:
        """Do without training what follows it, so that a model that cannot be delivered is refused before.

        Raises:
            UnsupportedModelError: the model cannot be written as ONNX.
            VerificationError: the dense file, its cost, or a cut of the size asked for is wrong.
        """
        export_onnx(self.dense, self._example, self.files["dense"], metadata=self._metadata)
        self._compare(self.dense, self.files["dense"], ("the model", "dense.onnx"))
        _check_cost(self, self.graph.all_kept(), self.dense, self.files["dense"])
        config = self.engine.config
        limits = config.budget(0).limits()
        trial = plan(
            self.graph,
            macs=limits.get("macs"),
            params=limits.get("params"),
            align=config.align,
            allow_inexact=config.allow_inexact,
        )
        slim(self.dense, trial, self._example, graph=self.graph)

    def cut(self, result: StudentResult) -> CapturedModule:
        """Remove the planned channels of the student, and write it in every form.

        Raises:
            VerificationError: the slim model does not compute what the masked one does.
        """
        self._student = copy.deepcopy(self.dense)
        self._student.load_state_dict(result.state_dict)
        self._masked = mask(self._student, result.plan)
        self._removed = result.removed
        slim_model = slim(self._student, result.plan, self._example, graph=self.graph)
        assert isinstance(slim_model, CapturedModule)
        self.slim_model = slim_model
        export_onnx(slim_model, self._example, self.files["slim"], metadata=self._metadata)
        save(slim_model, self.folder / "slim.pt2")
        result.plan.save(self.folder / "plan.json")
        return slim_model

    def verify(self) -> None:
        """Compare student, masked model, slim model and both files on real images.

        Raises:
            VerificationError: two of them differ, or a file does not have the cost that was counted.
        """
        file = self.files["slim"]
        self._compare(self._student, self._masked, ("the trained model", "the masked model"))
        reference, name = self._masked, "the masked model"
        if (self._removed & ~self.graph.exact).any():  # the masked model has other statistics, as `slim` has said
            reference, name = self.slim_model, "the slim model"
        else:
            self._compare(reference, self.slim_model, (name, "the slim model"))
        self._compare(reference, file, (name, "slim.onnx"), unoptimized=True)
        self._compare(reference, load(self.folder / "slim.pt2"), (name, "slim.pt2"))
        _check_cost(self, ~self._removed, self.slim_model, file)

    def _compare(
        self, reference: nn.Module, candidate: nn.Module | Path, labels: tuple[str, str], *, unoptimized: bool = False
    ) -> None:
        comparison = require_equal(reference, candidate, self._images, labels=labels, unoptimized=unoptimized)
        self.comparisons[f"{labels[1]} against {labels[0]}"] = comparison
        logger.info(
            "%s computes what %s does on %d images, to %.1e",
            labels[1],
            labels[0],
            comparison.samples,
            comparison.worst.error,
        )


def count_parameters(module: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _check_cost(delivery: Delivery, kept: Mask, module: nn.Module, file: Path) -> None:
    """The cost model decided what to remove: what it counted must be what was made."""
    counted, cost = onnx_cost(file), delivery.graph.cost
    if counted.uncounted:
        logger.warning("%s: not all of its cost can be counted: %s", file.name, counted.uncounted[0])
    elif counted.macs != round(cost.macs(kept)):
        raise VerificationError(
            f"{file.name} takes {counted.macs} multiply-accumulates, {round(cost.macs(kept))} were counted on the graph"
        )
    # Where a whole branch went, what is left of its normalization is a constant and no parameter any more.
    has_gone_branch = any(not kept[group_set.groups].any() for group_set in delivery.graph.sets)
    parameters = count_parameters(module)
    if parameters > cost.params(kept) or (parameters < cost.params(kept) and not has_gone_branch):
        raise VerificationError(
            f"the model of {file.name} has {parameters} parameters, {cost.params(kept)} were counted on the graph"
        )
