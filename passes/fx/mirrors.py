"""Attributes of torch modules that repeat sizes: `in_channels`, `groups`, `num_features`, `normalized_shape`, ...

They are read off the cut parameters; where a module has none (normalization without affine parameters), and
for numbers of groups, off the operators that the module calls.
"""

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from graphprune.passes.channels.analysis import Cut
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Value
from graphprune.passes.fx.analyze import FxFrontEnd, module_path

Changes = dict[str, Any]


def _conv(module: Any, changes: Changes) -> None:
    module.groups = changes.get("groups", module.groups)
    first, second = module.weight.shape[:2]
    if module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.out_channels, module.in_channels = first, second * module.groups


def _norm(module: Any, changes: Changes) -> None:
    known = module.weight if module.weight is not None else module.running_mean
    module.num_features = changes.get("channels", module.num_features) if known is None else known.shape[0]


def _group_norm(module: Any, changes: Changes) -> None:
    module.num_groups = changes.get("num_groups", module.num_groups)
    module.num_channels = changes.get("channels", module.num_channels)


def _layer_norm(module: Any, changes: Changes) -> None:
    sizes = changes.get("normalized_shape", module.normalized_shape)
    module.normalized_shape = tuple(
        old if new is None else new for old, new in zip(module.normalized_shape, sizes, strict=True)
    )


def _linear(module: Any, changes: Changes) -> None:
    module.out_features, module.in_features = module.weight.shape


def _prelu(module: Any, changes: Changes) -> None:
    module.num_parameters = module.weight.shape[0]


def _embedding(module: Any, changes: Changes) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _recurrent(module: Any, changes: Changes) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    rows, module.input_size = module.weight_ih_l0.shape
    module.hidden_size = rows // gates
    if module.proj_size:
        module.proj_size = module.weight_hr_l0.shape[0]
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


_MIRRORS: tuple[tuple[type, Callable[[Any, Changes], None]], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.modules.batchnorm._NormBase, _norm),
    (nn.GroupNorm, _group_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.Linear, _linear),
    (nn.PReLU, _prelu),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.RNNBase, _recurrent),
)


def update_attributes(model: nn.Module, graph: ChannelGraph, removed: Mask) -> None:
    """Make the attributes of every module of a cut model agree with its parameters again; in place."""
    mirrors = {
        path: (module, mirror)
        for path, module in model.named_modules(remove_duplicate=False)
        for kind, mirror in _MIRRORS
        if isinstance(module, kind)
    }
    changes = _changes_by_module(graph, removed, mirrors.keys())
    for path, (module, mirror) in mirrors.items():
        mirror(module, changes.get(path, {}))


def _changes_by_module(graph: ChannelGraph, removed: Mask, wanted: Collection[str]) -> dict[str, Changes]:
    """What cuts change in the operators that modules of the paths `wanted` call or own the weights of."""
    front: FxFrontEnd = graph.front_end
    nodes = {node.name: node for node in front.module.graph.nodes}
    found: dict[str, Changes] = {}
    for name, (rule, _, op) in front.ops.items():
        weight = op.optional("weight")
        owner = None if weight is None or weight.parameter is None else weight.parameter.rpartition(".")[0]
        paths = [path for path in {module_path(nodes[name]), owner or ""} if path in wanted]
        if not paths:
            continue
        read = op.inputs if rule.resize is not None else {"input": op.inputs.get("input")}
        cut = Cut({key: graph.cuts(v, removed) for key, v in read.items() if isinstance(v, Value)}, [{}])
        changes = {} if rule.resize is None else rule.resize(op, cut)
        kept = cut.kept("input", 1)
        if kept is not None:
            changes = {**changes, "channels": int(kept.sum())}
        for path in paths if changes else ():
            found.setdefault(path, {}).update(changes)
    return found
