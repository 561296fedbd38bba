"""Small ONNX models, written operator by operator, and a comparison that is no part of the project."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
