"""What runs models: onnxruntime's sessions and kernels, fair stop-watches, torch's devices, and the machine's facts."""
