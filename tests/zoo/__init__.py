"""Tiny networks, one for each thing that channel analysis has to get right.

Each class has `example_inputs()`; `build(name)` gives one with every parameter and statistic random (batch norms
have a shift, scales differ from one), because zeros and ones hide mistakes. A network registers itself in `ZOO` when
its module is imported.
"""

from zoo import backbones, dynamic, interfaces, joins, mixers, norms, parameters, tokens  # noqa: F401 - they register theirs
from zoo.backbones import Plain
from zoo.base import ZOO, Net, analyzed, build, captured_of, first_of, random_removal, randomize, traced

__all__ = [
    "ZOO",
    "Net",
    "Plain",
    "analyzed",
    "build",
    "captured_of",
    "first_of",
    "random_removal",
    "randomize",
    "traced",
]
