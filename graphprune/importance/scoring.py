"""Scores of all groups of a model at once, for one-shot plans: by any criterion, on images where it needs some.

Gradients are those of a loss without labels: the cross-entropy with the model's own classes for classifiers, and with
the nearer of 0 and 1 for scores. A distance from its own outputs would have no gradient, so for other networks it is
their energy: what is lost when they fade.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.data.batches import Batch, changed, evaluation_batches, tensors_of
from graphprune.importance.activations import ActivationStatistics
from graphprune.importance.criteria import Evidence, criterion, scale_parameters
from graphprune.importance.group_index import GroupIndex
from graphprune.importance.learned import Learned
from graphprune.importance.output_loss import Form, flatten_outputs, logits
from graphprune.passes.errors import UsageError
from graphprune.reconstruction.reconstruct import cost_scores
from graphprune.runtime.precision import in_format, number_format

if TYPE_CHECKING:
    from graphprune.inputs import Images
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["score_groups"]

_MOST_IMAGES = 256
_BATCH = 16  # small, because squares of gradients are averaged over batches


def score_groups(
    graph: "ChannelGraph",
    importance: str,
    images: "Images | None" = None,
    seed: int = 0,
    output_loss: str = "auto",
) -> np.ndarray:
    """(n_groups,) scores by the criterion of that name.

    Args:
        graph: channel groups of a torch or an ONNX model.
        importance: a name in `graphprune.importance.criteria.CRITERIA`.
        images: for criteria that need them; up to 256 are looked at, drawn at random, for "reconstruction" up to 1,000.
        seed: of that draw and of the criterion "random".
        output_loss: what the model's outputs are, as in `CompressConfig`.

    Raises:
        UsageError: the criterion is unknown, or needs images or a torch model and there are none.
        DataError: the model does not take these images.
        UnsupportedModelError: it takes batches of one size alone, or no images.
    """
    chosen = criterion(importance)
    generator = torch.Generator().manual_seed(seed)
    scales = scale_parameters(graph.front_end.ops)
    sets = [s.groups for s in graph.sets]
    if chosen.needs == "weights":
        return chosen(Evidence(_weights(graph), generator, sets, scales)).double().numpy()
    if not hasattr(graph.front_end, "module"):
        raise UsageError(f"importance {importance!r} runs the model, and an ONNX graph is not run: give a torch model")
    if images is None:
        raise UsageError(f"importance {importance!r} needs images: give some, or take one that looks at weights alone")
    if chosen.needs == "costs":
        index = _weights(graph)
        costs = partial(cost_scores, graph, images, seed)
        return chosen(Evidence(index, generator, sets, scales, costs=costs)).double().numpy()
    module = copy.deepcopy(graph.front_end.module).eval().requires_grad_(True)  # weights may have been frozen for use
    index = GroupIndex(dict(module.named_parameters(remove_duplicate=False)), graph.axes, graph.n_groups)
    batches = _batches(images, module, seed)
    statistics = ActivationStatistics(module, graph, batches)
    evidence = Evidence(index, generator, sets, scales, statistics)
    if chosen.needs == "activations":
        return chosen(evidence).double().numpy()
    total = torch.zeros(graph.n_groups, dtype=torch.float64)
    learned = Learned.of(module, output_loss)
    if not learned.nodes:
        raise UsageError("the model returns no floating-point tensor, so there is no gradient to look at")
    tapped = module.with_taps((), learned.nodes).eval()
    for batch in batches():
        module.zero_grad()
        torch.autograd.backward(_own_loss(flatten_outputs(tapped(*tensors_of(batch))[0]), learned))
        total += chosen(evidence)
    return total.numpy()


def _batches(images: "Images", module: "CapturedModule", seed: int) -> Callable[[], Iterator[Batch]]:
    """Batches of the images drawn, as often as they are asked for; read once."""
    from graphprune.inputs import DataOptions, read_images, refuse_fixed_batch

    refuse_fixed_batch(module, f"scores are found on batches of {_BATCH} and fewer")
    source, kind = read_images(images, DataOptions(), module).sample(_MOST_IMAGES, seed), number_format(module)
    formed = partial(in_format, dtype=kind)
    return lambda: (changed(batch, formed) for batch in evaluation_batches(source, _BATCH))


def _own_loss(outputs: list[Tensor], learned: Learned) -> Tensor:
    """The sum over what is learned."""
    return torch.stack([_of(form, output) for form, output in zip(learned.forms(outputs), outputs, strict=True)]).sum()


def _of(form: Form, output: Tensor) -> Tensor:
    if form.is_classes:
        scores = logits(form, output)
        return nn.functional.cross_entropy(scores.movedim(form.axis, 1), scores.detach().argmax(form.axis))
    if form.name == "scores":
        return nn.functional.binary_cross_entropy_with_logits(output, (output.detach() > 0).to(output))
    return output.square().mean() / output.detach().square().mean().clamp_min(1e-12)


def _weights(graph: "ChannelGraph") -> GroupIndex:
    """The weights that the groups run through, of a torch graph or of an ONNX one, as its layers compute with them."""
    front = graph.front_end
    if hasattr(front, "module"):
        from graphprune.passes.fx.effective import computed_weights as of_module

        computed = of_module(graph)
        given = dict(front.module.named_parameters())
    else:
        from graphprune.passes.onnx.effective import computed_weights as of_file
        from graphprune.passes.onnx.quantized import is_setting, real

        computed = of_file(graph)
        literals = {name: front.names[name] for name in sorted({name for name, _ in graph.axes} - computed.sources)}
        given = {name: _fixed(real(value)) for name, value in literals.items() if not is_setting(value)}
    made = {name: _fixed(array) for name, array in computed.arrays.items()}
    left = {name: parameter for name, parameter in given.items() if name not in computed.sources}
    return GroupIndex({**left, **made}, {**graph.axes, **computed.axes}, graph.n_groups)


def _fixed(array: np.ndarray | Tensor) -> nn.Parameter:
    found = torch.tensor(array) if isinstance(array, np.ndarray) else array.detach().clone()
    return nn.Parameter(found, requires_grad=False)
