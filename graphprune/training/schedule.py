"""How a run goes over time: phases, scheduled budget, sparsity ramp and learning rate.

    warm-up    nothing is made sparse; sensitivities settle
    sparsify   u in [0, 1]: the scheduled budget falls as  b(u) = target + (1 - target)(1 - u)^3  until u = 1 - fade;
               from there on the set is final and its last groups fade to exactly zero
    settle     the set is fixed at zero; from `freeze_bn_at` on BatchNorm computes as in inference

Two other courses, to compare with: "static" draws the set once, at the beginning of the sparsify phase and for the
target, and lets it fade through that phase; "one-shot" sets it to zero in one step, and settles for the rest.

In the course "reconstructed" students begin without what goes: all of the run is the settle phase.

Source: cubic budget, Zhu & Gupta 2017, "To prune, or not to prune", eq. 1; sigmoid ramp of the proximal step,
Ruan et al. 2021 (DPFPS), section 3.3.
"""

import math
from dataclasses import dataclass
from typing import Literal

from graphprune.config import RECONSTRUCTED, CompressConfig
from graphprune.passes.errors import UsageError

Phase = Literal["warm-up", "sparsify", "settle"]

_DRAWS_PER_RUN = 40
_EVALUATIONS_PER_RUN = 20
_MIN_STEPS = 10
_LEAST_SPARSIFY = 4  # steps, where the run is too short for its share


@dataclass(frozen=True)
class Schedule:
    """The course of a run of `total` steps; every question is answered from the step number alone."""

    total: int
    sparsify_from: int
    settle_from: int
    freeze_bn_at: int
    fade_steps: int
    redraw_every: int
    eval_every: int
    lr_warmup: int
    lr_final: float

    @classmethod
    def of(cls, config: CompressConfig, steps_per_epoch: int) -> "Schedule":
        """The schedule of `config` on data with that many steps in an epoch."""
        total = max(1, round(config.epochs * steps_per_epoch))
        if total < _MIN_STEPS:
            raise UsageError(
                f"`epochs={config.epochs:g}` gives {total} steps of {config.batch_size} images; at least {_MIN_STEPS} "
                "are needed: raise `epochs`, lower `batch_size` or give more images"
            )
        return cls.of_steps(config, total)

    @classmethod
    def of_steps(cls, config: CompressConfig, total: int) -> "Schedule":
        """The schedule of `config` for so many steps."""
        if total < _MIN_STEPS:
            raise UsageError(f"steps must be at least {_MIN_STEPS}, not {total}")
        # However the shares round, channels get a few steps to go, and one is left to settle.
        # Nor is a set drawn before every student has learned once.
        turns = -(-config.n_students // config.students_per_step) if config.students_per_step else 0
        start = min(max(round(config.warmup * total), turns), total - _LEAST_SPARSIFY - 1)
        settle = min(total - 1, max(start + _LEAST_SPARSIFY, round((config.warmup + config.sparsify) * total)))
        if config.course == "one-shot":
            settle = start + 1
        if config.course == RECONSTRUCTED:
            start, settle = 0, 0
        fade = max(1, round(config.fade * (settle - start))) if config.course == "dynamic" else settle - start
        return cls(
            total=total,
            sparsify_from=start,
            settle_from=settle,
            freeze_bn_at=max(settle, round(config.bn_freeze * total)),
            fade_steps=max(1, min(fade, settle - start)),
            redraw_every=config.redraw_every or max(1, total // _DRAWS_PER_RUN),
            eval_every=config.eval_every or max(1, total // _EVALUATIONS_PER_RUN),
            lr_warmup=round(config.lr_warmup * total),
            lr_final=config.lr_final,
        )

    def phase(self, step: int) -> Phase:
        """The phase that `step` (0, 1, ...) belongs to."""
        if step < self.sparsify_from:
            return "warm-up"
        return "sparsify" if step < self.settle_from else "settle"

    @property
    def final_draw(self) -> int:
        """The step at which the expected-sparse set is drawn for the last time, at the full budget."""
        return self.settle_from - self.fade_steps

    def is_draw(self, step: int) -> bool:
        """Whether the expected-sparse set is drawn anew before the proximal step of `step`."""
        if not self.sparsify_from <= step <= self.final_draw:
            return False
        return step == self.final_draw or (step - self.sparsify_from) % self.redraw_every == 0

    def steps_to_zero(self, step: int) -> int:
        """Steps in which a group that is in the set at `step` has to reach zero: at most until the settle phase."""
        return max(1, min(self.fade_steps, self.settle_from - step))

    def progress(self, step: int) -> float:
        """How much of the way from dense (0) to the target (1) the scheduled budget has gone."""
        if step < self.sparsify_from:
            return 0.0
        if step >= self.final_draw:
            return 1.0
        # A draw is made for the steps up to the next one, hence the first aims at a budget below dense.
        ahead = step + self.redraw_every - self.sparsify_from
        u = min(1.0, ahead / max(1, self.final_draw - self.sparsify_from))
        return 1.0 - (1.0 - u) ** 3

    def share(self, step: int, target: float) -> float:
        """The scheduled budget at `step`, a share of the dense cost, for a final share of `target`."""
        return 1.0 - (1.0 - target) * self.progress(step)

    def ramp(self, step: int) -> float:
        """Strength of the sparsity term (sigma_t): a sigmoid from 0 to 1 over the first half of the sparsify phase."""
        if step < self.sparsify_from:
            return 0.0
        u = min(1.0, 2.0 * (step + 1 - self.sparsify_from) / max(1, self.settle_from - self.sparsify_from))
        low, high = _sigmoid(-6.0), _sigmoid(6.0)
        return (_sigmoid(12.0 * u - 6.0) - low) / (high - low)

    def lr_factor(self, step: int) -> float:
        """Learning rate at `step` as a share of the peak: a linear rise, then a cosine down to `lr_final`."""
        if step < self.lr_warmup:
            return (step + 1) / self.lr_warmup
        u = (step - self.lr_warmup) / max(1, self.total - self.lr_warmup)
        return self.lr_final + (1.0 - self.lr_final) * 0.5 * (1.0 + math.cos(math.pi * u))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))
