"""ONNX graphs as torch modules that compute the same, so that a network can learn without the code it was written in.

    ONNX graph -> `OnnxModule`: one torch expression a node, parameters named as the initializers

`operators/` holds how each ONNX operator is written in torch, one file a family, as the channel rules do.
"""

from graphprune.passes.importer.module import OnnxModule, import_onnx

__all__ = ["OnnxModule", "import_onnx"]
