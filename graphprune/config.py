"""Every setting of a compression run, with its default and unit, in one place.

A budget is a share of the dense model's cost: 0.5 means that at most half of it is left; or a latency. Several budgets
must all hold. With several students each may have its own: `macs=(0.66, 0.5, 0.33)`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graphprune.freezing import patterns_of
from graphprune.passes.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16"]
OutputLoss = Literal["auto", "kl", "mse"]
Course = Literal["dynamic", "static", "one-shot", "reconstructed"]
Recipe = Literal["dynamic", "combined"]

#: The course in which students begin without what goes, fitted in closed form.
RECONSTRUCTED = "reconstructed"

#: Settings that say what must be reached: one value, or one per student.
BUDGETS = ("macs", "params", "speedup", "latency_ms")

# Settings that may differ between a run and its continuation: they do not change what is computed.
_FREE_ON_RESUME = frozenset({"device", "threads", "checkpoint_seconds", "checkpoint_steps", "eval_every"})


def require_choice(name: str, value: Any) -> None:
    """Raises: UsageError: a setting that is one of some names is none of them."""
    if value not in _CHOICES[name]:
        raise UsageError(f"`{name}` must be one of {', '.join(_CHOICES[name])}, not {value!r}")


@dataclass(frozen=True)
class Budget:
    """What one student must reach; `None` is no limit.

    Attributes:
        macs: share of the dense multiply-accumulates.
        params: share of the dense parameters.
        speedup: latency of the dense network over that of the slim one.
        latency_ms: milliseconds of one run of the slim network.
    """

    macs: float | None = None
    params: float | None = None
    speedup: float | None = None
    latency_ms: float | None = None

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: limit for name, limit in dataclasses.asdict(self).items() if limit is not None}

    def shares(self) -> dict[str, float]:
        """The limits on what is counted, as shares of the dense cost by unit."""
        return {name: limit for name, limit in self.limits().items() if name in ("macs", "params")}

    def is_tighter_than(self, other: "Budget") -> bool:
        """Whether what is within this budget is within the other, too, and they are not the same."""
        mine, others = self.limits(), other.limits()
        return self != other and all(
            name in mine and (mine[name] >= limit if name == "speedup" else mine[name] <= limit)
            for name, limit in others.items()
        )

    @property
    def has_latency(self) -> bool:
        """Whether something is to be reached that has to be measured."""
        return self.speedup is not None or self.latency_ms is not None


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """Settings of a compression run. Checked on creation; a bad value raises `UsageError`.

    Attributes:
        macs: budget in multiply-accumulates, share of the dense model's; one number, or one per student.
        params: budget in parameters, share of the dense model's; one number, or one per student.
        speedup: how many times faster than the dense model, measured in onnxruntime; one number, or one per student.
        latency_ms: budget in milliseconds of one run in onnxruntime; one number, or one per student.
        n_students: how many students learn side by side.
        students_per_step: how many of them learn in each step, in turns, which makes a run of several cheaper; 0 = all.
        epochs: length of the run in passes over the images; may be a fraction. 0 trains nothing: channels go by what
            that costs the layers that read them, which are fitted anew in closed form.
        batch_size: images per step.
        lr: peak learning rate of SGD with Nesterov momentum; None = 0.02, or 0.003 in the course "reconstructed", whose
            start a larger one harms before it helps.
        momentum: momentum of SGD.
        weight_decay: L2 decay per unit of learning rate, of all parameters but biases and norm weights.
        lr_warmup: share of the run over which the learning rate rises to its peak.
        lr_final: learning rate at the end, as a share of the peak (cosine in between).
        grad_clip: largest norm of a student's gradient; 0 = unlimited.
        lambda_out: weight of the loss on outputs.
        lambda_feature: weight of the loss on intermediate features.
        lambda_mutual: weight of the loss between students; none learns from one with a tighter budget.
        lambda_sparsity: weight of the group sparsity term.
        temperature: softmax temperature of the loss on outputs.
        output_loss: "kl" for class logits, "mse" for anything else; "auto" goes by what ends the network (Softmax,
            ArgMax, Sigmoid), and by the output's shape where nothing says it.
        sensitivity: what orders the groups, a name in `graphprune.importance.criteria.CRITERIA`.
        sensitivity_decay: decay per step of the running sensitivity (rho).
        diversity: spread (standard deviation of the logarithm) of the factors that sensitivities of further students of
            one budget are multiplied with; without it, students that start alike would stay alike.
        redraw_every: steps between two draws of the expected-sparse set; 0 = about 40 draws in a run.
        course: how channels leave: "dynamic" draws the set anew as the budget falls; "static" draws it once, at the
            full budget, and lets it fade; "one-shot" sets it to zero at once and learns for the rest of the run;
            "reconstructed" takes out at once what costs the layers that read it least, fits these in closed form,
            learns all the run, and delivers nothing worse than that start.
        warmup: share of the run before anything is made sparse.
        sparsify: share of the run in which the budget is approached; what is left of the run settles.
        fade: share of the sparsify phase over which one group goes to exactly zero.
        bn_freeze: share of the run after which BatchNorm keeps its statistics, as in inference; not before the settle
            phase. 1 = they follow the batches to the end.
        min_channels: groups that every set keeps, unless it can be bypassed as a whole.
        align: kept groups of a set are a multiple of this; "auto": widths on the staircase measured on this machine,
            as budgets in latency always take.
        recipe: "dynamic" is the method of this engine; "combined" searches the allocation of the convolutions ("auto"
            is then the policy "ddpg"), prunes the weights of linear layers by `sigma` (then 3 by default), and trains
            on what was decided.
        policy: how many channels go from where: "knapsack", "threshold" or "uniform"; "auto" takes the knapsack where
            latency matters and the threshold elsewhere. "ddpg", "bee-colony" and "random" try allocations out before
            the training, which then keeps to the best one's widths.
        search_evaluations: how many allocations such a policy tries out.
        search_images: images that it judges each on.
        sigma: weights of linear layers that are less than so many standard deviations from their mean become zero and
            stay so; 0 = none do (`graphprune.training.linear_sparsity`).
        freeze: patterns (`layer1.*`) of layers that keep all their output channels, and linear ones all their weights.
        shrink: remove dead groups from the students while they learn, which makes steps cheaper and changes nothing
            else.
        allow_inexact: also remove groups whose removal changes a statistic (LayerNorm, GroupNorm).
        precision: "auto" takes bfloat16 autocast only if a short measurement finds it clearly faster.
        device: where the training computes: "auto" takes a CUDA device if there is one, and else the CPU; or as torch
            names it. The result is exported and measured on the CPU in any case.
        threads: CPU threads of torch; 0 = leave as it is.
        seed: seed of everything random.
        flip: mirror training images at random.
        crop: shift training images at random, by up to an eighth of their side.
        mix: share of the training images that are blended with another one, at random.
        holdout: images on which agreement is measured and that are never trained on; at most a tenth of all.
        eval_every: steps between two measurements of agreement; 0 = about 20 in a run.
        calibration_images: images for the final BatchNorm statistics.
        checkpoint_seconds: seconds between two checkpoints; 0 = no timed checkpoint.
        checkpoint_steps: steps between two checkpoints; 0 = by time alone.
    """

    macs: float | tuple[float, ...] | None = None
    params: float | tuple[float, ...] | None = None
    speedup: float | tuple[float, ...] | None = None
    latency_ms: float | tuple[float, ...] | None = None
    n_students: int = 1
    students_per_step: int = 0
    epochs: float = 10.0
    batch_size: int = 64
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    lr_warmup: float = 0.02
    lr_final: float = 0.01
    grad_clip: float = 5.0
    lambda_out: float = 1.0
    lambda_feature: float = 10.0
    lambda_mutual: float = 0.5
    lambda_sparsity: float = 1e-3
    temperature: float = 4.0
    output_loss: OutputLoss = "auto"
    sensitivity: str = "taylor"
    sensitivity_decay: float = 0.98
    diversity: float = 0.2
    redraw_every: int = 0
    course: Course = "dynamic"
    warmup: float = 0.03
    sparsify: float = 0.25
    fade: float = 0.2
    bn_freeze: float = 0.7
    min_channels: int = 1
    align: int | Literal["auto"] = 1
    recipe: Recipe = "dynamic"
    policy: str = "auto"
    search_evaluations: int = 300
    search_images: int = 512
    sigma: float | None = None
    freeze: str | Sequence[str] = ()
    shrink: bool = True
    allow_inexact: bool = False
    precision: Precision = "auto"
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    flip: bool = True
    crop: bool = True
    mix: float = 0.0
    holdout: int = 512
    eval_every: int = 0
    calibration_images: int = 2048
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int = 0

    def __post_init__(self) -> None:
        self._complete()
        _check_budgets(self)
        for name, (low, high, closed_low, closed_high) in _RANGES.items():
            if (name, getattr(self, name)) not in (("align", "auto"), ("lr", None)):
                _check_range(name, getattr(self, name), low, high, closed_low, closed_high)
        for name in _CHOICES:
            require_choice(name, getattr(self, name))
        if self.warmup + self.sparsify >= 1:
            raise UsageError(
                f"warmup and sparsify must leave a part of the run to settle: {self.warmup:g} + "
                f"{self.sparsify:g} is not below 1"
            )
        if self.course == RECONSTRUCTED and self.sigma and self.epochs:
            raise UsageError(
                f"`course={RECONSTRUCTED!r}` fits layers that would have to keep their zeros: with `sigma` and "
                '`recipe="combined"` take another course'
            )
        if self.policy != "auto":  # which always can
            from graphprune.allocation import require_policy  # brings SciPy, which --help does not need

            require_policy(self.policy, latency=self.needs_latency)

    def require_goal(self) -> None:
        """Is there something to do for each student?

        Raises:
            UsageError: a student has nothing to reach, and no single weights go either, or there is a search; or fewer
                students than are to learn in a step.
        """
        from graphprune.allocation import SEARCHES

        if self.students_per_step > self.n_students:
            raise UsageError(
                f"`students_per_step={self.students_per_step}` is more than there are: students are as many as "
                f"budgets, or as `n_students` says (now {self.n_students})"
            )
        if all(self.budget(number).limits() for number in range(self.n_students)):
            return
        if self.policy in SEARCHES or not self.sigma:
            why = f", and policy {self.policy} searches an allocation for one" if self.policy in SEARCHES else ""
            raise UsageError(
                f"no budget given{why}: say what must be reached with `speedup`, `latency_ms`, `macs` or `params`"
            )

    def _complete(self) -> None:
        """Fill in what the recipe says and no other setting does."""
        is_combined = self.recipe == "combined"
        object.__setattr__(self, "freeze", patterns_of(self.freeze))
        if self.sigma is None:
            object.__setattr__(self, "sigma", _SIGMA if is_combined else 0.0)
        if is_combined and self.policy == "auto":
            object.__setattr__(self, "policy", "ddpg")

    @property
    def peak_lr(self) -> float:
        """The peak learning rate, whether it was given or goes with the course."""
        if self.lr is not None:
            return self.lr
        return _GENTLE_LR if self.course == RECONSTRUCTED else _LR

    @property
    def settle(self) -> float:
        """Share of the run in which the set is fixed at zero and the rest goes on learning."""
        return 1.0 - self.warmup - self.sparsify

    def budget(self, student: int) -> Budget:
        """The budget of one student."""
        values = {name: getattr(self, name) for name in BUDGETS}
        return Budget(**{name: v[student] if isinstance(v, tuple) else v for name, v in values.items()})

    @property
    def needs_latency(self) -> bool:
        """Whether widths are chosen by measured latency."""
        return self.align == "auto" or any(self.budget(number).has_latency for number in range(self.n_students))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON and checkpoints take them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CompressConfig":
        """Inverse of `to_dict`. Raises: UsageError: an unknown setting."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that determine the result: what a continued run must share with the first."""
        return {k: v for k, v in {**self.to_dict(), "lr": self.peak_lr}.items() if k not in _FREE_ON_RESUME}

    def refuse_resume_from(self, fingerprint: Mapping[str, Any]) -> None:
        """Raises: UsageError: a run with `fingerprint` computes something else; names the first difference.

        A setting that the run did not know yet counts as left at its default.
        """
        mine, before = self.fingerprint(), {**CompressConfig().fingerprint(), **fingerprint}
        for name in sorted((mine.keys() | before.keys()) - _FREE_ON_RESUME):
            if mine.get(name) != before.get(name):
                raise UsageError(
                    f"cannot resume: `{name}` was {before.get(name)} and is now {mine.get(name)}; "
                    "use the same settings or start afresh"
                )


_LR, _GENTLE_LR = 0.02, 0.003
_SIGMA = 3.0  # standard deviations, of the method's name

# name: (low, high, low allowed, high allowed)
_RANGES: dict[str, tuple[float, float, bool, bool]] = {
    "n_students": (1, math.inf, True, False),
    "students_per_step": (0, math.inf, True, False),
    "epochs": (0, math.inf, True, False),
    "batch_size": (2, math.inf, True, False),
    "lr": (0, math.inf, False, False),
    "momentum": (0, 1, True, False),
    "weight_decay": (0, math.inf, True, False),
    "lr_warmup": (0, 1, True, False),
    "lr_final": (0, 1, True, True),
    "grad_clip": (0, math.inf, True, False),
    "lambda_out": (0, math.inf, True, False),
    "lambda_feature": (0, math.inf, True, False),
    "lambda_mutual": (0, math.inf, True, False),
    "lambda_sparsity": (0, math.inf, True, False),
    "temperature": (0, math.inf, False, False),
    "sensitivity_decay": (0, 1, True, False),
    "diversity": (0, math.inf, True, False),
    "redraw_every": (0, math.inf, True, False),
    "warmup": (0, 1, True, False),
    "sparsify": (0, 1, False, False),
    "fade": (0, 1, False, True),
    "bn_freeze": (0, 1, True, True),
    "search_evaluations": (1, math.inf, True, False),
    "search_images": (2, math.inf, True, False),
    "sigma": (0, math.inf, True, False),
    "min_channels": (1, math.inf, True, False),
    "align": (1, math.inf, True, False),
    "threads": (0, math.inf, True, False),
    "seed": (0, 2**63, True, False),
    "mix": (0, 1, True, True),
    "holdout": (1, math.inf, True, False),
    "eval_every": (0, math.inf, True, False),
    "calibration_images": (2, math.inf, True, False),
    "checkpoint_seconds": (0, math.inf, True, False),
    "checkpoint_steps": (0, math.inf, True, False),
}
_WHOLE = frozenset(
    field.name for field in dataclasses.fields(CompressConfig) if field.type is int and field.name in _RANGES
) | {"align"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "sensitivity": ("random", "l1", "l2", "taylor", "bn_scale", "fpgm", "apoz", "entropy", "hrank"),
    "course": ("dynamic", "static", "one-shot", RECONSTRUCTED),
    "recipe": ("dynamic", "combined"),
    "policy": ("auto", "knapsack", "threshold", "uniform", "ddpg", "bee-colony", "random"),
    "precision": ("auto", "float32", "bfloat16"),
    "output_loss": ("auto", "kl", "mse"),
}


def _check_budgets(config: CompressConfig) -> None:
    for name in BUDGETS:
        value = getattr(config, name)
        low, high = {"speedup": (1.0, math.inf), "latency_ms": (0.0, math.inf)}.get(name, (0.0, 1.0))
        for limit in value if isinstance(value, tuple) else (value,):
            if limit is not None:
                _check_range(name, limit, low, high, False, False)
        if isinstance(value, tuple) and len(value) != config.n_students:
            raise UsageError(f"`{name}` gives {len(value)} budgets for {config.n_students} students")


def _check_range(name: str, value: Any, low: float, high: float, closed_low: bool, closed_high: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"`{name}` must be a number, not {value!r}")
    if name in _WHOLE and not isinstance(value, int):
        raise UsageError(f"`{name}` must be a whole number, not {value!r}")
    above = value >= low if closed_low else value > low
    below = value <= high if closed_high else value < high
    if above and below:  # also false for NaN
        return
    if high == math.inf:
        bound = f"at least {low:g}" if closed_low else f"above {low:g}"
    else:
        bound = f"between {low:g} and {high:g}"
    raise UsageError(f"`{name}` must be {bound}, not {value}")
