"""The record of a search: what was tried, what it was worth, and the best of it.

Searches are repeatable, so the journal of one that was stopped is all that it needs to go on: started anew, it asks for
the same allocations, and those in the journal are not evaluated again.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.allocation.policies import SEARCHES, allocate
from graphprune.allocation.problem import Problem
from graphprune.formats.files import atomic_write_json, atomic_write_text
from graphprune.passes.errors import UsageError
from graphprune.search.curve import draw_curve
from graphprune.search.options import Search, Trial
from graphprune.search.space import Space
from graphprune.widths import set_widths

__all__ = ["Trials"]

logger = logging.getLogger("graphprune")

_FORMAT = 1


class Trials:
    """Evaluates allocations, as many as are allowed.

    Attributes:
        space: the allocations that may be tried.
        starts: (n_sets,) widths that a search may begin from: equal shares, and those of a policy without a search,
            brought into the space.
        rewards: of all evaluations so far, in order; the first are those of `starts`.
    """

    def __init__(self, problem: Problem, policy: str) -> None:
        """Try the allocations that need no search first, which the result will not be worse than.

        Args:
            problem: what is to be allocated, with what tries allocations out.
            policy: name of the policy.

        Raises:
            UsageError: there is nothing that tries allocations out, or the policy to start from is a search, too.
            BudgetError: a budget cannot be reached.
        """
        if not isinstance(problem.search, Search):
            raise UsageError(f"policy {policy} tries allocations out on images: give some")
        self.space = Space(problem)
        self.policy = policy
        self._search: Search = problem.search
        self._known = self._recall()
        self.rewards: list[float] = []
        self._best: Trial | None = None
        self.starts = [self.space.project(np.ones(len(self.space)))]
        self.look(self.starts[0])
        start = self._search.options.start
        if start in SEARCHES:
            raise UsageError(f"a search cannot start from policy {start}, which searches itself: take auto, or none")
        if start and self.left > 0:
            removed = allocate(problem, start)
            self.starts.append(self.space.project(self.space.shares(set_widths(problem.graph, ~removed))))
            self.look(self.starts[1])
            # What it gives may be narrower in places than searches go.
            if self.left > 0 and not np.array_equal(removed, self.space.removed(self.starts[1])):
                self._try(removed)

    @property
    def total(self) -> int:
        """How many evaluations there will be."""
        return self._search.options.evaluations

    @property
    def left(self) -> int:
        """How many evaluations are left."""
        return self.total - len(self.rewards)

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self._search.seed

    def look(self, widths: np.ndarray) -> float:
        """The reward of an allocation that fits; counts as an evaluation even if it was looked at before."""
        return self._try(self.space.removed(widths))

    def _try(self, removed: np.ndarray) -> float:
        key = hashlib.sha256(np.packbits(removed).tobytes()).hexdigest()[:24]
        if key not in self._known:
            self._known[key] = self._search.evaluate(~removed)
            self._note()
        trial = self._known[key]
        if self._best is None or trial.reward > self._best.reward:
            self._best, self._removed = trial, removed
        self.rewards.append(trial.reward)
        if self._search.options.progress is not None:
            self._search.options.progress(len(self.rewards), self.total, self._best)
        return trial.reward

    def result(self) -> np.ndarray:
        """Mask of the groups that go in the best allocation, (n_groups,); says so, and draws the curve."""
        assert self._best is not None
        logger.info(
            "%s: the best of %d allocations agrees on %s of the images, before any training (reward %.4f; equal shares "
            "%.4f)",
            *(self.policy, len(self.rewards), "-" if self._best.agreement is None else f"{self._best.agreement:.4f}"),
            *(self._best.reward, self.rewards[0]),
        )
        journal = self._search.options.journal
        if journal is not None:
            atomic_write_text(journal.with_suffix(".svg"), draw_curve(self.rewards, self.policy))
        return self._removed

    # -- the journal -------------------------------------------------------------------------------------------

    def _recall(self) -> dict[str, Trial]:
        """What the journal knows of this model and these images. Its keys say which channels went."""
        journal = self._search.options.journal
        if journal is None or not journal.exists():
            return {}
        data = _read(journal)
        if data.get("format") != _FORMAT or data.get("fingerprint") != self._search.fingerprint:
            logger.warning("%s is of another model or of other images; it is replaced", journal)
            return {}
        return {key: Trial(agreement, distance) for key, (agreement, distance) in data["trials"].items()}

    def _note(self) -> None:
        journal = self._search.options.journal
        if journal is not None:
            trials = {key: [trial.agreement, trial.distance] for key, trial in self._known.items()}
            atomic_write_json(journal, {"format": _FORMAT, "fingerprint": self._search.fingerprint, "trials": trials})


def _read(journal: Path) -> dict[str, Any]:
    """The journal, or nothing where it is not readable: all that is lost are some minutes."""
    try:
        data = json.loads(journal.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or not isinstance(data.get("trials"), dict):
            raise ValueError
        pairs = data["trials"].values()
        if not all(isinstance(p, list) and len(p) == 2 and isinstance(p[1], int | float) for p in pairs):
            raise ValueError
    except (OSError, ValueError):
        logger.warning("%s is no journal of a search; it is replaced", journal)
        return {}
    return data
