"""Small ONNX models, written operator by operator, as for the ONNX front end."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "onnx"))
