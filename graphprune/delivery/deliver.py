"""From a student to files that are known to compute what it does.

    student (dense shapes, planned channels zero) = masked model = slim model = slim.onnx = slim.pt2, on real images

and the multiply-accumulates counted in the ONNX files are those that the cost model said.
"""

import copy
import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from graphprune.allocation import SEARCHES
from graphprune.api import plan
from graphprune.config import Budget, CompressConfig
from graphprune.data import Source
from graphprune.data.batches import as_batch, tensors_of
from graphprune.delivery.untrained import Untrained
from graphprune.formats.export import export_onnx
from graphprune.formats.imported import cut_at_heads
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.formats.put_back import put_back
from graphprune.formats.saving import load, save
from graphprune.formats.sparse_storage import StoredSparse, store_sparse
from graphprune.int8.quantize import QuantizeOptions, rehearse_int8
from graphprune.latency import LatencyTarget
from graphprune.latency.stopwatch import Stopwatch
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import UsageError, VerificationError
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.slim import mask, slim
from graphprune.passes.importer import OnnxModule
from graphprune.search import SearchOptions
from graphprune.slimming import slim_onnx
from graphprune.training.engine import Engine
from graphprune.training.run_records import StudentResult
from graphprune.verification.verify import Comparison, require_equal, rounds_in_between
from graphprune.version import __version__

__all__ = ["Delivery", "Member", "count_parameters", "member_names"]

logger = logging.getLogger("graphprune")

_EXAMPLES = 8
_CHECKED_IMAGES = 128


class Delivery:
    """The files of one run.

    Attributes:
        engine: the run, with or without a training.
        plans: what would go at once, by budget; see `rehearse`.
        graph: channel groups of the model.
        dense: the captured model as it came.
        folder: where the files are written.
        own_file: the ONNX file that the model came from, which is then the one that is cut; None for models of torch.
        shapes: of the images, for files that leave sizes free beyond the batch.
        files: the ONNX files by name: "dense", and those of the members.
        members: the slim models that were made, in the order they were asked for.
        stopwatch: measures latencies, where the budget asks for it.
        comparisons: by the name of what was compared with what came before it.
        stored_sparse: by member, how weights that are mostly zero are stored.
    """

    def __init__(
        self, engine: Engine | Untrained, folder: Path, came_from: nn.Module | ExportedProgram | None = None
    ) -> None:
        self.engine = engine
        self._own = came_from if isinstance(came_from, OnnxModule) else None
        self.own_file = None if self._own is None else self._own.source
        self.plans: dict[Budget, PruningPlan] = {}
        self.graph = engine.graph
        self.folder = folder
        self.comparisons: dict[str, Comparison] = {}
        self.files = {"dense": folder / "dense.onnx"}
        self.members: list[Member] = []
        self.stopwatch: Stopwatch | None = None
        self.stored_sparse: dict[str, StoredSparse] = {}
        self.macs_left_out = 0  # in the part of the user's own file that has no torch form
        # The graph's own copy: that of the engine may be in another memory layout.
        self.dense: CapturedModule = engine.graph.front_end.module
        held = engine.held_out
        self.shapes = held.shapes
        self._images = held.batch(slice(0, _CHECKED_IMAGES))
        self._example = tensors_of(as_batch(held.batch(np.arange(_EXAMPLES) % len(held))))
        self._metadata = {"graphprune_version": __version__}
        if held.preprocess is not None:
            self._metadata["graphprune_preprocessing"] = json.dumps(held.preprocess.to_dict())

    @property
    def source(self) -> Source:
        """The images that are learned from, or fitted to."""
        return self.engine.source if isinstance(self.engine, Untrained) else self.engine.batches.source

    def rehearse(
        self,
        target: LatencyTarget | None = None,
        journal: Path | None = None,
        search: SearchOptions | None = None,
        int8: QuantizeOptions | None = None,
    ) -> None:
        """Do without training what follows it, so that a model that cannot be delivered is refused before.

        Where the budget is one in latency, it is measured here how long every layer takes at which width. A policy that
        searches does so here, and the students are told what it has found.

        Args:
            target: what latency is to be measured for.
            journal: file of what a run that is resumed has measured; by default it is measured now.
            search: where a search keeps its record, and whom it tells about it.
            int8: how the slim files are to be quantized, if they are; the dense one is tried now.

        Raises:
            UnsupportedModelError: the model cannot be written as ONNX, or not be quantized.
            BudgetError: the budget cannot be reached.
            VerificationError: the dense file, its cost, or a cut of the size asked for is wrong.
        """
        if self.own_file is None:
            export_onnx(self.dense, self._example, self.files["dense"], metadata=self._metadata)
        else:
            put_back(self.own_file, {}, self.files["dense"])
        self.compare(self.dense, self.as_read(self.files["dense"]), ("the model", "dense.onnx"))
        if self.is_part:
            whole = onnx_cost(self.files["dense"], shapes=self.shapes).macs
            self.macs_left_out = max(0, whole - round(self.graph.cost.macs(self.graph.all_kept())))
        check_cost(self, self.graph.all_kept(), self.dense, self.files["dense"])
        if int8 is not None:
            rehearse_int8(self.files["dense"], self.source, options=int8)
        config = self.engine.config
        if self.is_part and config.allow_inexact:
            raise UsageError(
                "channels whose removal changes a statistic stay in a file of which a part has no torch form: leave "
                "`allow_inexact` out"
            )
        if config.needs_latency:
            self.stopwatch = Stopwatch(
                self.graph,
                self.files["dense"],
                target or LatencyTarget(),
                journal=journal,
                resume=journal is not None,
                shapes=self.shapes,
                seed=config.seed,
            )
            self.engine.use(self.stopwatch)
        budgets = dict.fromkeys(config.budget(number) for number in range(config.n_students))
        search = search or SearchOptions()
        for budget in filter(Budget.limits, budgets):
            own = search
            if search.journal is not None and len(budgets) > 1:
                journal = search.journal.with_name(f"{_named(search.journal.stem, budget)}{search.journal.suffix}")
                own = dataclasses.replace(search, journal=journal)
            trial = self.plans[budget] = self._planned(budget, own)
            slim(self.dense, trial, self._example, graph=self.graph)
            if config.policy in SEARCHES:
                for student in self.engine.students:
                    if config.budget(student.number) == budget:
                        student.set.aim(self.graph.removed_by(trial))

    def as_read(self, file: Path) -> Path | bytes:
        """A file with the outputs of the model: of one that ends in what has no torch form, what enters that."""
        return file if self._own is None else cut_at_heads(self._own, file)

    @property
    def is_part(self) -> bool:
        """Whether the model is only a part of the user's own file, less what has no torch form."""
        return self._own is not None and bool(self._own.left_out)

    def note_latencies(self, journal: Path | None) -> None:
        """Write what was measured, and what will be, into a file that a run that is killed goes on from."""
        if self.stopwatch is not None and journal is not None:
            self.stopwatch.note_in(journal)

    def _planned(self, budget: Budget, search: SearchOptions) -> PruningPlan:
        """What would go at once; a policy that searches also looks at images, and at channels as the engine does."""
        config, sparsity = self.engine.config, self.engine.sparsity
        looks: dict[str, Any] = {}
        if config.policy in SEARCHES:
            options = dataclasses.replace(search, evaluations=config.search_evaluations, images=config.search_images)
            looks = {"importance": config.sensitivity, "images": self.source, "search": options, "seed": config.seed}
            looks["output_loss"] = config.output_loss
        if isinstance(self.engine, Untrained):
            looks["importance"] = self.engine.closed_form.scores
        return plan(
            self.graph if sparsity is None else sparsity.thinned(without_dead=False),
            macs=budget.macs,
            params=budget.params,
            speedup=budget.speedup,
            latency_ms=budget.latency_ms,
            align=config.align,
            min_channels=config.min_channels,
            policy=config.policy,
            allow_inexact=config.allow_inexact,
            freeze=[*config.freeze, *(sparsity.layers if sparsity is not None else ())],
            stopwatch=self.stopwatch,
            **looks,
        )

    def cut(self, result: StudentResult, name: str = "slim") -> "Member":
        """Remove the planned channels of a student, and write it in every form.

        Args:
            result: the student.
            name: of its files: NAME.onnx, NAME.pt2 and NAME.plan.json (plan.json for "slim").

        Raises:
            VerificationError: the slim model does not compute what the masked one does.
        """
        student = copy.deepcopy(self.dense)
        student.load_state_dict(result.state_dict)
        slim_model = slim(student, result.plan, self._example, graph=self.graph)
        assert isinstance(slim_model, CapturedModule)
        member = Member(self, name, result, student, slim_model)
        self.files[name] = member.file
        if self.own_file is None:
            export_onnx(slim_model, self._example, member.file, metadata=self._metadata)
        else:
            self._cut_own_file(student, result.plan, member.file)
        if self.engine.sparsity is not None:
            self.stored_sparse[name] = store_sparse(member.file, self._images)
        if self.own_file is None:  # who came with an ONNX file has no use for torch's archives
            save(slim_model, member.archive)
        result.plan.save(member.plan)
        self.members.append(member)
        return member

    def _cut_own_file(self, student: CapturedModule, plan: PruningPlan, target: Path) -> None:
        """Write the user's own file with the student's numbers, less the planned channels."""
        assert self.own_file is not None
        assert self._own is not None
        own_name = self._own.renamed
        state = student.state_dict()
        learned = {own_name.get(name, name): held for name, held in state.items() if held.is_floating_point()}
        plan = plan.renamed(own_name)
        whole = masked_file(target)
        try:
            put_back(self.own_file, learned, whole)
            slim_onnx(whole, target, plan, shapes=self.shapes, force=True)
        finally:
            if not self.is_part:  # else what is left out is compared between both files
                whole.unlink(missing_ok=True)

    def compare(
        self,
        reference: nn.Module | Path,
        candidate: nn.Module | Path | bytes,
        labels: tuple[str, str],
        *,
        unoptimized: bool = False,
    ) -> Comparison:
        """Compare two forms of a model on real images, and keep what was found.

        Raises:
            VerificationError: they differ.
        """
        as_written = isinstance(candidate, Path) and rounds_in_between(candidate)
        if as_written:
            logger.warning(
                "%s rounds to integers on its way: compared as it is written; kernels in bytes may give other numbers",
                labels[1],
            )
        ways = {"unoptimized": unoptimized and not as_written, "as_written": as_written}
        comparison = require_equal(reference, candidate, self._images, labels=labels, **ways)
        self.comparisons[f"{labels[1]} against {labels[0]}"] = comparison
        logger.info(
            "%s computes what %s does on %d images, to %.1e",
            labels[1],
            labels[0],
            comparison.samples,
            comparison.worst.error,
        )
        return comparison


@dataclass(frozen=True)
class Member:
    """A slim model of a run, and its files.

    Attributes:
        delivery: the run.
        name: what its files are called.
        result: the student it came from.
        student: the trained model, its removed channels at zero.
        model: what is left of it.
    """

    delivery: Delivery
    name: str
    result: StudentResult
    student: CapturedModule
    model: CapturedModule

    @property
    def file(self) -> Path:
        """The ONNX file."""
        return self.delivery.folder / f"{self.name}.onnx"

    @property
    def archive(self) -> Path:
        """The torch.export archive."""
        return self.delivery.folder / f"{self.name}.pt2"

    @property
    def plan(self) -> Path:
        """The file with the channels that went."""
        return self.delivery.folder / ("plan.json" if self.name == "slim" else f"{self.name}.plan.json")

    def verify(self) -> None:
        """Compare student, masked model, slim model and both files on real images.

        Raises:
            VerificationError: two of them differ, or a file does not have the cost that was counted.
        """
        masked = mask(self.student, self.result.plan)
        compare, name = self.delivery.compare, self.name
        of = "" if name == "slim" else f" {name}"
        compare(self.student, masked, (f"the trained model{of}", f"the masked model{of}"))
        reference, label = masked, f"the masked model{of}"
        if (self.result.removed & ~self.delivery.graph.exact).any():
            # The masked model has other statistics, as `slim` has said.
            reference, label = self.model, f"the slim model{of}"
        else:
            compare(reference, self.model, (label, f"the slim model{of}"))
        if self.delivery.is_part:
            self._verify_parts(reference, label)
        else:
            compare(reference, self.file, (label, self.file.name), unoptimized=True)
        if self.delivery.own_file is None:
            compare(reference, load(self.archive), (label, self.archive.name))
        check_cost(self.delivery, ~self.result.removed, self.model, self.file)

    def _verify_parts(self, reference: nn.Module, label: str) -> None:
        """Compare the model with the part of the file that it is, and then the whole files with each other."""
        whole = masked_file(self.file)
        names = (label, "the masked file"), ("the masked file", self.file.name)
        try:
            self.delivery.compare(reference, self.delivery.as_read(whole), names[0], unoptimized=True)
            self.delivery.compare(whole, self.file, names[1], unoptimized=True)
        finally:
            whole.unlink(missing_ok=True)


def masked_file(target: Path) -> Path:
    """Where the user's own file lies while it is cut, with the numbers that were learned and nothing removed."""
    return target.with_name(f".{target.stem}.whole.onnx")


def member_names(config: CompressConfig) -> list[str]:
    """Names for the students of a run, by their budgets: "slim" for one, "slim-macs0.5" in a family."""
    limits = [config.budget(number).limits() for number in range(config.n_students)]
    if len({tuple(found.items()) for found in limits}) == 1:
        return ["slim"] * len(limits)
    names = [_named("slim", config.budget(number)) for number in range(config.n_students)]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: at + 1].count(name)}" for at, name in enumerate(names)
    ]


def _named(what: str, budget: Budget) -> str:
    return "-".join([what, *(f"{unit}{share:g}" for unit, share in budget.limits().items())])


def count_parameters(module: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_cost(delivery: Delivery, kept: Mask, module: nn.Module, file: Path) -> None:
    """The cost model decided what to remove: what it counted must be what was made."""
    counted, cost = onnx_cost(file, shapes=delivery.shapes), delivery.graph.cost
    expected = round(cost.macs(kept)) + delivery.macs_left_out
    if counted.uncounted:
        logger.warning("%s: not all of its cost can be counted: %s", file.name, counted.uncounted[0])
    elif counted.macs > expected:
        raise VerificationError(
            f"{file.name} takes {counted.macs} multiply-accumulates, {expected} were counted on the graph"
        )
    elif counted.macs < expected:
        # That the outputs are equal is proven apart from this.
        logger.log(
            logging.WARNING if kept.all() else logging.INFO,
            "%s takes %d multiply-accumulates, %d were counted on the graph: layers that compute the "
            "same or select channels count once or not at all in a file; budgets are met by the larger number",
            file.name,
            counted.macs,
            expected,
        )
    # Where a whole branch went, what is left of its normalization is a constant and no parameter any more.
    has_gone_branch = any(not kept[group_set.groups].any() for group_set in delivery.graph.sets)
    parameters = count_parameters(module)
    if parameters > cost.params(kept) or (parameters < cost.params(kept) and not has_gone_branch):
        raise VerificationError(
            f"the model of {file.name} has {parameters} parameters, {cost.params(kept)} were counted on the graph"
        )
