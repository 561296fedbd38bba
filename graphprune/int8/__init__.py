"""int8 versions of ONNX files: calibrated on images, with those layers left in float32 that need it."""
