"""Copies of models in which every weight is a parameter of its own.

Weight norm, spectral norm and other parametrizations compute a weight anew in every call. A channel at zero
has no direction to normalize (0 / 0), so it could be neither masked nor trained to zero. What such a layer
computes in inference is a plain layer with the present weight: that is what is analyzed and cut. Fake quantization
keeps the ranges that it has.
"""

import copy
import logging
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from graphprune.passes.fx.device import CPU, to_device
from graphprune.passes.fx.fake_quantize import is_observed, stop_observing

logger = logging.getLogger("graphprune")


def is_plain(model: nn.Module) -> bool:
    """Is no weight of the model computed by a parametrization or an older hook, and no range of it by an observer?"""
    return not observes(model) and _has_plain_weights(model)


def _has_plain_weights(model: nn.Module) -> bool:
    return not any(parametrize.is_parametrized(module) or _hooks(module) for module in model.modules())


def observes(model: nn.Module) -> bool:
    """Does a module of torch.ao in the model round, and perhaps observe what it rounds?"""
    return any(is_observed(module) for module in model.modules())


def copy_on_cpu(model: nn.Module) -> nn.Module:
    """A plain copy on the CPU, wherever the model is."""
    duplicate = plain_copy(model)
    return to_device(duplicate, CPU) if isinstance(duplicate, fx.GraphModule) else duplicate.to(CPU)


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy in the same mode, with parametrized weights as plain parameters, which observes nothing."""
    held = [t for module in model.modules() for t in vars(module).values() if isinstance(t, torch.Tensor)]
    # What hooks computed has a history, which torch does not copy.
    duplicate = copy.deepcopy(model, {id(t): t.detach().clone() for t in held if not t.is_leaf})
    if observes(duplicate):
        stop_observing(duplicate)
    if _has_plain_weights(duplicate):
        return duplicate
    logger.info("weights that a parametrization computes (weight norm, spectral norm, ...) become plain parameters")
    modes = {module: module.training for module in duplicate.modules()}
    duplicate.eval()  # in training, spectral norm would iterate once more
    with torch.no_grad():
        for module in list(duplicate.modules()):
            _bake(module)
    for module, training in modes.items():
        module.training = training
    return duplicate


def _hooks(module: nn.Module) -> list[tuple[int, Any]]:
    hooks = module._forward_pre_hooks.items()
    return [(key, hook) for key, hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]


def _bake(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        # Not by `remove_parametrizations`: that takes the property off a class which the original shares.
        tables: Any = module.parametrizations
        weights = {name: getattr(module, name) for name in tables}
        trainable = {name: isinstance(next(tables[name].parameters(), None), nn.Parameter) for name in tables}
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, weight in weights.items():
            if trainable[name]:
                module.register_parameter(name, nn.Parameter(weight.detach().clone()))
            else:
                module.register_buffer(name, weight.detach().clone())
    for key, hook in _hooks(module):
        hook.remove(module)
        del module._forward_pre_hooks[key]
