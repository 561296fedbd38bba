"""The exported file of a network with some groups removed, without training: what will be run, as far as time goes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphprune.passes.onnx.layout import ShiftPass
from graphprune.passes.onnx.model import load_model
from graphprune.passes.onnx.slim import slim_model

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["cut_file"]


def cut_file(graph: "ChannelGraph", dense: str | os.PathLike[str], kept: np.ndarray) -> bytes:
    """Content of the ONNX file `dense`, exported from the model of `graph`, without the groups that are not kept.

    Raises:
        PlanError: the file has none of the weights, or a set without a way around it is emptied.
    """
    if kept.all():
        return Path(dense).read_bytes()
    model = load_model(dense)
    slim_model(model, graph.plan(~kept))
    ShiftPass()(model)  # as the exporter does
    return ir.to_proto(model).SerializeToString()
