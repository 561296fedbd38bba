"""Whatever the ONNX graph: as a torch module it computes what onnxruntime does, or it is refused in one line."""

import logging
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from random_onnx import OPSETS, random_model, random_recipe

from graphprune.passes.errors import GraphPruneError
from graphprune.passes.importer import import_onnx

#: Operators whose results jump, or that are random: rounding before them may become anything behind.
_JUMPS = {"Round", "Floor", "Ceil", "ArgMax", "ArgMin", "TopK", "Greater", "Less", "Sign"}


def one(seed, folder):
    rng = np.random.default_rng(seed)
    opset, free = int(rng.choice(OPSETS)), bool(rng.integers(2))
    model = random_model(random_recipe(rng, int(rng.integers(3, 14))), seed, opset, free)
    path = folder / "net.onnx"
    onnx.save(model, path)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(path, options)
        feeds = {
            item.name: rng.standard_normal(
                [dim if isinstance(dim, int) else 8 if at else 2 for at, dim in enumerate(item.shape)]
            ).astype(np.float32)
            for item in session.get_inputs()
        }
        expected = session.run(None, feeds)
    except Exception:
        return "not for onnxruntime"
    try:
        module = import_onnx(path)
        with torch.no_grad():
            found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    except GraphPruneError as error:
        return "refused" if "\n" not in str(error) else "refused in many lines"
    if {node.op_type for node in model.graph.node} & _JUMPS:
        return "jumps"
    for mine, theirs in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert tuple(mine.shape) == theirs.shape, seed
        if np.isfinite(theirs).all():
            scale = max(1e-3, float(np.abs(theirs).max(initial=0)))
            np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=1e-4 * scale, err_msg=str(seed))
    return "equal"


def many(seeds, folder):
    logging.disable(logging.WARNING)
    try:
        return Counter(one(seed, folder) for seed in seeds)
    finally:
        logging.disable(logging.NOTSET)


def test_random_graphs_compute_the_same_in_torch(tmp_path):
    found = many(range(60), tmp_path)
    assert found["equal"] > 20, found
    assert not found["refused in many lines"]


@pytest.mark.slow
def test_many_random_graphs_compute_the_same_in_torch(tmp_path):
    found = many(range(1000, 3000), tmp_path)
    assert found["equal"] > 900, found
    assert not found["refused in many lines"]
