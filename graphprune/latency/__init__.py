"""Latency of a network as a function of the widths of its layers, measured in onnxruntime on this machine.

segments   the exported file in pieces that onnxruntime runs as one kernel, each with the widths its time depends on
sampling   which widths to measure: whole files are cut, run, and timed kernel by kernel
model      the time of every segment at any widths; their sum, checked against whole files
"""

from graphprune.latency.model import LatencyModel
from graphprune.latency.target import LatencyTarget

__all__ = ["LatencyModel", "LatencyTarget"]
