"""What int8 takes from a reconstructed network, beside what it takes from the dense one.

    python benchmarks/reconstruction/int8.py --data cifar10-jpeg.zip --models MODELS

All layers become int8 (no search for layers to leave in float32), calibrated on images of `train/`; agreement with the
dense float32 network, and accuracy, are told on all of `val/`. Rows go to results/int8.json as they come.
"""

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from rows import Rows  # noqa: E402
from run import Bench  # noqa: E402

import graphprune as gp  # noqa: E402

_BATCH = 250


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--share", type=float, default=0.5, help="of the multiply-accumulates that is left")
    parser.add_argument("--images", type=int, default=1000, help="to fit to")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(options.results / "int8.json", ("network", "what"))
    what = f"{options.share:g} of the MACs, reconstructed"
    if rows.has(network=options.network, what=what):
        return
    bench = Bench.of(options.network, options)
    fitted, _, _ = bench.fitted(options.share, 0)
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        for name, module in (("dense", bench.graph.front_end.module), (what, fitted)):
            path = Path(folder) / "float.onnx"
            gp.export_onnx(module.eval(), (torch.from_numpy(bench.val.batch(slice(0, 8))),), path)
            gp.quantize_onnx(path, Path(folder) / "int8.onnx", bench.train, options=_OPTIONS, force=True)
            answers = [_answers(Path(folder) / f"{kind}.onnx", bench.val) for kind in ("float", "int8")]
            reference = answers[0] if reference is None else reference
            agreement = [float((a.argmax(1) == reference.argmax(1)).mean()) for a in answers]
            accuracy = [float((a.argmax(1) == bench.val.labels).mean()) for a in answers]
            row = {"network": options.network, "what": name, "agreement": agreement, "accuracy": accuracy}
            rows.add(row)
            print(row, flush=True)
            path.unlink()


_OPTIONS = gp.QuantizeOptions(min_agreement=0.0)


def _answers(path: Path, images: gp.ImageSource) -> np.ndarray:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: batch})[0] for batch in images.batches(_BATCH)])


if __name__ == "__main__":
    main()
