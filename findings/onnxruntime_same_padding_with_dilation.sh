#!/usr/bin/env bash
# Expected: a Conv with auto_pad SAME_UPPER (or SAME_LOWER) and dilations runs, or the file is refused when it is
#   loaded.
# Happens: the checker, full shape inference and onnxruntime's loading are content; the first run is an error,
#   "Dilation not supported for AutoPadType". OpenVINO and the onnx reference evaluator run the same file.
# Seen with: onnxruntime 1.32.0, onnx 1.23.2.
# Why it matters: atrous convolutions with "same" padding are what DeepLab and its kind are made of in Keras, and
#   converters that keep auto_pad write exactly this. A file can be analysed, pruned and stored, and still never have
#   been able to run: run the given file once before anything else. Explicit pads are the cure.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

ort.set_default_logger_severity(4)
print("onnxruntime", ort.__version__, "onnx", onnx.__version__)
rng = np.random.default_rng(0)
weight = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
feeds = {"x": rng.standard_normal((1, 3, 9, 9)).astype(np.float32)}


def build(**how):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **how)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 9, 9])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def session(model):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


explicit = session(build(pads=[2, 2, 2, 2], dilations=[2, 2])).run(None, feeds)[0]
for kind in ("SAME_UPPER", "SAME_LOWER"):
    assert session(build(auto_pad=kind)).run(None, feeds)[0].shape == (1, 4, 9, 9)
    model = build(auto_pad=kind, dilations=[2, 2])
    reference = ReferenceEvaluator(model).run(None, feeds)[0]
    print(kind, "with dilations: reference evaluator runs it, right:", np.allclose(reference, explicit, atol=1e-4))
    loaded = session(model)
    print("  onnxruntime loads it, states", loaded.get_outputs()[0].shape)
    try:
        loaded.run(None, feeds)
    except Exception as error:
        print("  onnxruntime's first run:", str(error)[-92:].strip())
        assert "Dilation not supported" in str(error)
    else:
        raise SystemExit("onnxruntime runs it now")
print("still so")
PYTHON
