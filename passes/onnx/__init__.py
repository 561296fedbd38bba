"""The ONNX front end: channel analysis and dead-channel elimination. Needs no torch."""
