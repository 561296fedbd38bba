"""A run without training: channels chosen by what their going costs, what is left fitted in closed form."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from graphprune.allocation import count, count_dense
from graphprune.config import Budget, CompressConfig
from graphprune.data import Source
from graphprune.delivery.closed_form import ClosedForm
from graphprune.latency.stopwatch import Stopwatch
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import UsageError
from graphprune.reconstruction.reconstruct import set_apart
from graphprune.training.run_records import StudentResult

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["Untrained"]


class Untrained:
    """What a delivery needs of a run, without a training.

    Attributes:
        graph: channel groups of the model.
        config: settings, with at least one budget.
        held_out: images that nothing is fitted to.
        source: the others.
        closed_form: costs of the groups, and fits.

    Raises:
        UsageError: a setting that only a training can follow.
        DataError: there are too few images.
    """

    sparsity = None
    students: tuple[()] = ()
    device = torch.device("cpu")

    def __init__(
        self,
        graph: "ChannelGraph",
        images: Source,
        config: CompressConfig,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if config.sigma:
            raise UsageError(
                "single weights of linear layers become zero in a training alone: with `epochs=0` leave `sigma` and "
                '`recipe="combined"` out'
            )
        config.require_goal()
        self.graph, self.config = graph, config
        self.source, self.held_out = set_apart(images, config.seed)
        self.closed_form = ClosedForm(graph, self.source, config.seed, progress)
        self._stopwatch: Stopwatch | None = None

    def use(self, stopwatch: Stopwatch) -> None:
        """Count latencies by these."""
        self._stopwatch = stopwatch

    def run(self, plans: Mapping[Budget, PruningPlan]) -> list[StudentResult]:
        """One result per budget, from its plan."""
        config, results = self.config, []
        for number in range(config.n_students):
            plan = plans[config.budget(number)]
            state, removed = self.closed_form.fit(number, plan), self.graph.removed_by(plan)
            model = None if self._stopwatch is None else self._stopwatch.model
            found, dense = count(self.graph, ~removed, model), count_dense(self.graph, model)
            cost = {unit: found[unit] / dense[unit] for unit in found}
            results.append(StudentResult(number, state, removed, plan, cost, float("nan"), []))
        return results

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.closed_form.to_dict(), "judged": len(self.held_out)}
