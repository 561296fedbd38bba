"""Compress a trained network from Python: a module, an array of images without labels, and a budget.

Run it: python examples/compress_from_python.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
import torch

import graphprune as gp
from graphprune import demo


def main(folder: Path) -> None:
    """Train a small network on handwritten digits, then halve its multiply-accumulates without a label."""
    digits = demo.load_digits()
    model = demo.train(digits, epochs=2, width=16)

    # What the network takes: float32, normalized as in its training, (number, channels, height, width).
    images = (digits.train[:, None].astype(np.float32) / 255 - 0.5) / 0.5
    config = gp.CompressConfig(epochs=2, flip=False, crop=False, threads=1)
    result = gp.compress(model, images, macs=0.5, config=config, output=folder, force=True)
    print(result)

    # The files outlive this script and need neither the class of the network nor this package's training engine.
    slim = gp.load(folder / "slim.pt2")
    held_back = torch.from_numpy((digits.val[:, None].astype(np.float32) / 255 - 0.5) / 0.5)
    with torch.no_grad():
        same = slim(held_back).argmax(1) == model(held_back).argmax(1)
    print(f"on {len(held_back)} digits that neither has seen, both answer the same for {same.float().mean():.1%}")
    print(f"the file to ship: {folder / 'slim.onnx'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "compressed"))
