"""The whole of it: look at the dense network once, then choose channels, or fit what a plan leaves."""

import copy
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.allocation.policies import allocate
from graphprune.allocation.problem import Problem, count_dense
from graphprune.allocation.removable import removable_groups
from graphprune.data import Source
from graphprune.data.batches import as_batch, evaluation_batches, tensors_of
from graphprune.inputs import DataOptions, Images, capture_on, read_images, refuse_fixed_batch
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import BudgetError, DataError, UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.cut import cut_graph, named_tensors
from graphprune.passes.fx.outputs import run
from graphprune.passes.fx.plain import plain_copy
from graphprune.passes.fx.slim import slim
from graphprune.passes.fx.spread import owned, restore
from graphprune.reconstruction.batches import ImageBatches, bytes_an_image, small_enough
from graphprune.reconstruction.curves import curves
from graphprune.reconstruction.layers import Layer, find_layers
from graphprune.reconstruction.report import LayerReport, ReconstructionReport, described
from graphprune.reconstruction.rotation import find_basis, require_same_function, rotate, rotate_seen
from graphprune.reconstruction.student import Student
from graphprune.reconstruction.teacher import Seen, Teacher
from graphprune.reconstruction.trunks import find_trunks
from graphprune.verification.agreement import Agreement
from graphprune.verification.distance import Distance
from graphprune.verification.output_kinds import are_floats, ends_of, kinds_of

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.channels.value import Value

__all__ = ["FEW_IMAGES", "Progress", "Reconstructed", "Reconstruction", "cost_scores", "reconstruct", "set_apart"]

logger = logging.getLogger("graphprune")

Progress = Callable[[int, int], None]
"""Told how many of so many parts of the work are done."""

#: Below so many images, weights of their own for every tap are hardly told from noise.
FEW_IMAGES = 128
_IMAGES = 1000
_BATCH = 50
#: What an error of the first layer may count beside one of the last; tried out on so many images, at this share of the
#: multiply-accumulates; and what it counts where images are too few for that.
_FIRSTS, _TRIED, _SHARE, _UNTRIED = (1.0, 0.1), 190, 0.5, 0.3
_JUDGED, _LEAST_JUDGED = 0.2, 100  # share of the images that nothing is fitted to, and how many these are at least
_MOST_BYTES = 1 << 30  # of results that are needed at once
_BATCH_BYTES = 1 << 24  # of the largest result of a batch: beyond that, caches hold too little of it


class Reconstruction:
    """A dense network and what was seen of it.

    Args:
        graph: channel groups of a torch model.
        images: what to fit to.
        number: of the images that are used at most, drawn at random; fewer where memory would not hold the results
            of one layer for all of them.
        seed: of that draw.
        positions: of an image and layer that are looked at.
        held: share of the images that strengths are chosen on.
        rotates: whether linear trunks that lose channels are held in another basis first.

    Raises:
        UsageError: an ONNX graph.
        DataError: fewer than two images.
        UnsupportedModelError: the model takes batches of one size alone.
    """

    def __init__(
        self,
        graph: "ChannelGraph",
        images: Source,
        *,
        number: int = _IMAGES,
        seed: int = 0,
        positions: int = 16,
        held: float = 0.2,
        rotates: bool = True,
    ) -> None:
        if not hasattr(graph.front_end, "module"):
            raise UsageError("a reconstruction runs the model, and an ONNX graph is not run: give a torch model")
        if len(images) < 2:
            raise DataError(f"{images.name} has {len(images)} image(s): two are needed to fit to one and try the other")
        refuse_fixed_batch(graph.front_end.module, "a reconstruction looks at several images at a time")
        self.graph = graph
        self.layers, self.unfit = find_layers(graph)
        self.trunks = find_trunks(graph, self.layers) if rotates else []
        wanted = min(number, len(images))
        asked = frozenset(layer.source for layer in self.layers)
        self._limit, room = small_enough(graph.front_end.module.graph, _MOST_BYTES, wanted, asked)
        self.source = images.sample(room, seed)
        if room < wanted:
            logger.warning("fitted to %d of the images: memory is kept for the results of no more", len(self.source))
        if len(self.source) < FEW_IMAGES:
            logger.warning(
                "fitted to %d images: with fewer than %d, channels are mapped instead of fitting every weight where "
                "that is better on images held out",
                *(len(self.source), FEW_IMAGES),
            )
        self._number = positions
        first = max(1, min(len(self.source) - 1, round((1 - held) * len(self.source))))
        largest = max(bytes_an_image(graph.front_end.module.graph).values(), default=1)
        size = max(1, min(_BATCH, _BATCH_BYTES // max(1, largest)))
        self._batches = ImageBatches(self.source, first, size)
        self._seen: dict[str, Seen] = {}
        self._first = _UNTRIED

    def look(self, *, moments: bool, progress: Progress | None = None) -> None:
        """Run the dense network; `moments`, where costs are asked for."""
        self._seen = Teacher(self.graph, self.layers, self._number).watch(
            self._batches, moments=moments, targets=True, progress=progress
        )

    def scores(self) -> np.ndarray:
        """(n_groups,) see `curves`; with that weight of early errors that does better where both are tried.

        What follows makes up for most of an early error in one network, and for little of it in another.
        """
        found = [self._curves(first) for first in _FIRSTS]
        plans = [plan for plan in (_reference(self.graph, scores) for scores in found) if plan is not None]
        if len(plans) < len(found) or len({plan.removed == plans[0].removed for plan in plans}) == 1:
            return found[0]
        if len(self.source) < 2 * FEW_IMAGES:
            return self._curves(self._first)
        tried, judged = _parts(self.source)
        other = Reconstruction(self.graph, tried, positions=self._number, rotates=bool(self.trunks))
        other.look(moments=False)
        errors = []
        for first, plan in zip(_FIRSTS, plans, strict=True):
            other._first = first
            errors.append(other._error(plan, judged))
        best = int(np.argmin(errors))
        self._first = _FIRSTS[best]
        logger.debug("errors of early layers count %g of those of the last (%s)", self._first, errors)
        return found[best]

    def _curves(self, first: float) -> np.ndarray:
        dense = named_tensors(self.graph.front_end.module)
        rotated = {trunk.index: find_basis(trunk, self._seen, dense, first).costs.numpy() for trunk in self.trunks}
        return curves(self.graph, self.layers, self._seen, rotated, first)

    @torch.no_grad()
    def _error(self, plan: PruningPlan, images: Source) -> float:
        """Squared distance of the outputs, relative to their spread, on images that nothing is fitted to."""
        dense = copy.deepcopy(self.graph.front_end.module).eval()
        fitted = copy.deepcopy(dense)
        fitted.load_state_dict(self.fit(plan)[0])
        return _compared(dense, fitted, images, "auto")[1]

    def fit(self, plan: PruningPlan, progress: Progress | None = None) -> tuple[dict[str, Tensor], list[LayerReport]]:
        """State of the dense network that computes what the fitted slim one does, and what became of the layers.

        The channels that go are zero in it.
        """
        graph, removed = self.graph, self.graph.removed_by(plan)
        dense, seen, turned = self._rotated(removed)
        module = owned(cut_graph(graph, plan, removed, dense))
        values = {node.name: value for node, value in graph.front_end.env.items()}
        kept: list[dict[str, Tensor]] = []
        for nodes in ([layer.result for layer in self.layers], [layer.source for layer in self.layers]):
            pairs = zip(self.layers, nodes, strict=True)
            kept.append({layer.name: _channels(graph, values[node], layer, removed) for layer, node in pairs})
        student = Student(module, self.layers, seen, frozenset(plan.removed), kept[0], kept[1], dense)
        solved = student.fit(self._batches, self._limit, progress)
        return restore(graph, module, ~removed), described(solved, self.layers, self.unfit, turned)

    def _rotated(self, removed: np.ndarray) -> tuple[dict[str, Tensor], dict[str, Seen], frozenset[str]]:
        """The dense network, what was seen of it, and which layers write to what is held in another basis.

        Trunks that lose channels have those of the least worth where the plan removes some.
        """
        dense, seen = dict(named_tensors(self.graph.front_end.module)), dict(self._seen)
        changed: dict[str, Tensor] = {}
        turned: list[str] = []
        for trunk in self.trunks:
            gone = removed[trunk.groups]
            if gone.any() and not gone.all():
                matrix = find_basis(trunk, seen, dense, self._first).with_last_at(gone).matrix
                changed |= rotate(trunk, matrix, dense)
                dense |= changed
                seen |= rotate_seen(trunk, matrix, seen)
                turned += [layer.name for layer, _ in trunk.writers]
        if changed:
            require_same_function(self.graph.front_end.module, changed, self._batches[0][:8])
        return dense, seen, frozenset(turned)


def _reference(graph: "ChannelGraph", scores: np.ndarray) -> PruningPlan | None:
    """A plan that leaves a part of the multiply-accumulates; None where none does."""
    budget = {"macs": _SHARE * count_dense(graph)["macs"]}
    try:
        return graph.plan(
            allocate(Problem(graph, scores, budget, removable_groups(graph.sets, graph.exact, False)), "threshold")
        )
    except BudgetError:
        return None


def _parts(images: Source) -> tuple[Source, Source]:
    """A few images to try a fit on, and a few others to judge it by."""
    number = min(_TRIED, len(images) // 2)
    return images.subset(np.arange(number)), images.subset(np.arange(number, 2 * number))


def _channels(graph: "ChannelGraph", value: "Value", layer: Layer, removed: np.ndarray) -> Tensor:
    """(left,) which channels of a value stay."""
    dim = 1 if layer.is_conv else value.rank - 1
    mask = graph.cuts(value, removed).get(dim)
    return torch.arange(value.shape[dim]) if mask is None else torch.from_numpy(np.flatnonzero(mask))


def cost_scores(graph: "ChannelGraph", images: Images, seed: int = 0) -> np.ndarray:
    """(n_groups,) what each group costs to remove where its readers make up for it; see `curves`."""
    module = getattr(graph.front_end, "module", None)
    if module is None:
        raise UsageError("a reconstruction runs the model, and an ONNX graph is not run: give a torch model")
    seen = Reconstruction(graph, read_images(images, DataOptions(), module), seed=seed)
    seen.look(moments=True)
    return seen.scores()


class Reconstructed:
    """A slim model whose layers were fitted in closed form.

    Attributes:
        model: the slim model; of the class of the one that was given where that is possible.
        masked: the same weights in the shapes of the dense model, removed channels zero.
        report: what was fitted, and how the result agrees with the dense model.
    """

    def __init__(self, model: nn.Module, masked: nn.Module, report: ReconstructionReport) -> None:
        self.model, self.masked, self.report = model, masked, report

    def __str__(self) -> str:
        return str(self.report)


def reconstruct(
    model: nn.Module,
    plan: PruningPlan,
    images: Images,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    number: int = _IMAGES,
    seed: int = 0,
    output_loss: str = "auto",
    progress: Progress | None = None,
) -> Reconstructed:
    """Remove the planned channels, and fit in closed form what is left to what the model gave before.

    No training and no labels: every layer that reads something else than before is solved for by ridge regression on
    a few hundred images. `model` is not touched. The slim model is checked against the masked one, as by `slim`.

    Args:
        model: a module, or a captured one.
        plan: what to remove.
        images: a path, what `load_images` returned, or an array of network inputs, as the model is to see them. A
            fifth of them, at least 100, are kept to judge by, half where there are fewer than 200.
        example_inputs: the arguments of one call, to capture the model with; by default a few of the images.
        number: of images to fit to at most, drawn at random.
        seed: of the draws.
        output_loss: what the outputs are, as in `CompressConfig`: classes are counted, values compared.
        progress: told how many of the batches and layers are done.

    Raises:
        PlanError: the plan does not fit the model.
        DataError: the images are missing, or not what the model takes.
        CaptureError, UnsupportedModelError: the model cannot be captured, or takes batches of one size alone.
        VerificationError: masked and slim differ.
    """
    started, worked = time.perf_counter(), time.process_time()
    source = read_images(images, DataOptions(), model)
    captured = capture_on(model, source, example_inputs)
    graph = analyze(captured, whole_heads=plan.options.get("whole_heads", False))
    fitting, judging = set_apart(source, seed)
    seen = Reconstruction(graph, fitting, number=number, seed=seed)
    seen.look(moments=False, progress=progress)
    state, layers = seen.fit(plan, progress)
    masked = copy.deepcopy(model) if isinstance(model, CapturedModule) else plain_copy(model)
    held = dict(named_tensors(masked))
    with torch.no_grad():
        for name, tensor in state.items():
            if name in held:
                held[name].copy_(tensor)
    example = tensors_of(as_batch(source.batch(slice(0, min(len(source), 8)))))
    slimmed = slim(masked, plan, example, graph=graph)
    agreement, distance = _compared(captured, slimmed, judging, output_loss)
    seconds = (round(time.perf_counter() - started, 2), round(time.process_time() - worked, 2))
    report = ReconstructionReport(len(seen.source), len(judging), agreement, distance, *seconds, tuple(layers))
    return Reconstructed(slimmed, masked, report)


def set_apart(images: Source, seed: int) -> tuple[Source, Source]:
    """Images to fit to, and images to judge by: a fifth, at least 100, at most half."""
    wanted = max(_JUDGED * len(images), _LEAST_JUDGED)
    return images.split(min(wanted / max(len(images), 1), 0.5), seed)


def _compared(dense: nn.Module, slimmed: nn.Module, images: Source, output_loss: str) -> tuple[float | None, float]:
    """Agreement (None where outputs are no classes) and squared distance relative to the spread."""
    agreement, distance = Agreement(), Distance()
    ends = ends_of(dense)
    for batch in evaluation_batches(images, _BATCH):
        ours, theirs = ([x.numpy() for x in run(net, tensors_of(batch))] for net in (dense, slimmed))
        kinds = kinds_of([x.shape for x in ours], output_loss, ends, len(batch), are_floats(ours))
        agreement.see(ours, theirs, kinds, len(batch))
        pairs = [
            pair for pair, is_float in zip(zip(ours, theirs, strict=True), are_floats(ours), strict=True) if is_float
        ]
        distance.see([a for a, _ in pairs], [b for _, b in pairs], len(batch))
    return agreement.share, distance.value
