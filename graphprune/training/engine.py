"""The training engine: a frozen teacher, students that start as its copies, unlabelled images, a budget.

One step:

    batch -> teacher (once, no gradient) -> each student -> L = l1 L_out + l2 L_feat + l3 L_mut -> backward
          -> optimizer, sensitivity, expected-sparse set, proximal step (`graphprune.training.student`)

The result of a run is determined by model, images and settings; a run that was killed and resumed ends the same.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graphprune.allocation import check_reachable
from graphprune.config import RECONSTRUCTED, CompressConfig
from graphprune.data import Source
from graphprune.data.batches import Augmentation, Batch, TrainingBatches, as_batch, changed, tensors_of
from graphprune.formats.files import remove_half_written
from graphprune.importance.learned import Learned
from graphprune.importance.output_loss import OutputLoss, describe_forms, flatten_outputs, spreads_of
from graphprune.inputs import refuse_fixed_batch
from graphprune.latency.stopwatch import Stopwatch
from graphprune.passes.errors import TrainingError, UsageError
from graphprune.runtime.device import resolve_device
from graphprune.runtime.memory import freed_memory_kept
from graphprune.runtime.precision import Precision, choose_precision, in_format, number_format
from graphprune.runtime.torch_mode import torch_threads
from graphprune.training.checkpoint import load_checkpoint, model_digest, save_checkpoint
from graphprune.training.divergence import Divergence
from graphprune.training.held_out import HeldOut
from graphprune.training.interrupt import Interrupt
from graphprune.training.linear_sparsity import LinearSparsity
from graphprune.training.objective import Objective, learning_at
from graphprune.training.processes import Processes
from graphprune.training.run_records import Observer, Progress, StudentResult
from graphprune.training.schedule import Schedule
from graphprune.training.start import Start
from graphprune.training.student import Student
from graphprune.training.taps import find_taps
from graphprune.training.teacher import Teacher

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.fx.captured import CapturedModule

_log = logging.getLogger("graphprune")

_MOST_HELD_OUT = 0.1  # share of the images
_LOOKED_AT = 256  # images


class Engine:
    """One run.

    Args:
        teacher: the captured model; it is not modified.
        graph: its channel groups.
        images: what to learn from; labels, if they have any, are never looked at.
        config: settings, with at least one budget per student.
        checkpoint: file to keep the state of the run in; `None` keeps none.
        progress: told about every step.
        observer: adds to each measurement of a student, for the record alone.
        processes: this process among those of the run. Each takes `batch_size` images of a step.

    Raises:
        UsageError: no budget (and no `sigma`), a run too short for it, or a sensitivity that has nothing to look at.
        BudgetError: the budget cannot be reached on this model.
        UnsupportedModelError: the model takes one batch size only.
    """

    def __init__(
        self,
        teacher: "CapturedModule",
        graph: "ChannelGraph",
        images: Source,
        config: CompressConfig,
        *,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        observer: Observer | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.observer = observer
        self.processes = processes or Processes(device=resolve_device(config.device))
        self.config = config
        self.graph = graph
        rest: Source
        self.held_out: Source
        rest, self.held_out = images.split(min(config.holdout / len(images), _MOST_HELD_OUT), config.seed)
        augmentation = Augmentation(crop=config.crop, flip=config.flip, mix=config.mix)
        whole_batch = config.batch_size * self.processes.world
        if self.processes.world > 1 and len(rest) < whole_batch:
            raise UsageError(
                f"{len(rest)} images are fewer than a batch of {config.batch_size} for each of {self.processes.world} "
                "processes: lower `batch_size` or start fewer processes"
            )
        self.batches = TrainingBatches(rest, whole_batch, seed=config.seed, augmentation=augmentation)
        self.checkpoint = checkpoint
        self.progress = progress
        self.schedule = Schedule.of(config, self.batches.steps_per_epoch)
        self.digest = model_digest(teacher)
        self.taps = find_taps(teacher.graph) if config.lambda_feature else []
        self.learned = Learned.of(teacher, config.output_loss)
        if not self.learned.nodes:
            raise TrainingError("the model returns no floating-point tensor, so there is nothing to learn from")
        refuse_fixed_batch(teacher, f"training needs {self.batches.batch_size} and others")
        self.teacher = Teacher(teacher, self.taps, self.learned.nodes)
        self.precision = Precision()
        self._dtype = number_format(teacher)
        self.sparsity = LinearSparsity(graph, teacher, config.sigma, config.freeze) if config.sigma else None
        self.students = [
            Student(teacher, graph, config, n, self.taps, self.learned.nodes, self._look, self.processes, self.sparsity)
            for n in range(config.n_students)
        ]
        self._check_budgets()
        self.done = 0  # steps
        self.step_seconds = 0.0  # of processor time that they took
        self.history: list[list[dict[str, Any]]] = [[] for _ in self.students]
        self.loss = self._output_loss()
        self.objective = Objective(config, self.loss)
        self.judge = HeldOut(self.held_out, self.teacher.answers, self.loss, self._prepared, config.batch_size)
        self._losses: list[dict[str, float]] = [{} for _ in self.students]
        self.starts: list[Start] = []
        self.facts: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        return self.processes.device

    # -- set-up ------------------------------------------------------------------------------------------------

    def _check_budgets(self) -> None:
        self.config.require_goal()
        for student in self.students:
            check_reachable(
                student.set.graph.cost,
                {unit: share * student.set.dense[unit] for unit, share in student.set.limits.items()},
                self.graph.sets,
                student.set.removable,
                student.set.keeps,
            )

    def use(self, stopwatch: Stopwatch) -> None:
        """Choose widths by these latencies; settings that ask for it need this before `run`."""
        for student in self.students:
            student.set.use(stopwatch)

    def begin(self, starts: Sequence[Start], facts: Mapping[str, Any]) -> None:
        """Have each student begin as one of these; the course "reconstructed" needs this before `run`.

        Args:
            starts: one per student.
            facts: how they came about, plain data, which the checkpoint keeps for the record.
        """
        self.starts, self.facts = list(starts), dict(facts)

    @torch.no_grad()
    def _output_loss(self) -> OutputLoss:
        outputs = self.teacher.targets(self._whole_batch(0, 0))[0]
        forms = self.learned.forms(outputs)
        _log.info("outputs: %s", describe_forms(forms, self.config.output_loss))
        spreads: list[float] = []
        if not all(form.is_classes for form in forms):
            looked_at = map(as_batch, self.held_out.batches(self.batches.batch_size))
            answers = [outputs, *(self.teacher.answers(self._prepared(batch)) for batch in looked_at)]
            spreads = spreads_of(answers, forms)
        loss = OutputLoss(forms, self.config.temperature, spreads)
        self.divergence = Divergence(self.config.lambda_out * loss.of_ignorance(outputs), self.config.peak_lr)
        return loss

    def _whole_batch(self, epoch: int, step: int) -> Batch:
        return self._prepared(self.batches.batch(epoch, step))

    def _batch(self, epoch: int, step: int) -> Batch:
        """This process's part of a batch."""
        return self.processes.part(self._whole_batch(epoch, step))

    def _prepared(self, batch: Batch) -> Batch:
        """A batch in the number format of the model, on the device and in the memory layout of the run."""
        found: Batch = changed(batch, lambda tensor: self.precision.images(in_format(tensor, self._dtype)))
        return found

    def _look(self) -> Iterator[Batch]:
        """Images for a sensitivity that looks at activations: always the same."""
        for step in range(min(self.batches.steps_per_epoch, math.ceil(_LOOKED_AT / self.batches.batch_size))):
            yield self._whole_batch(0, step)

    # -- the run -----------------------------------------------------------------------------------------------

    def run(self, resume: bool = False) -> list[StudentResult]:
        """Train to the end and return one result per student.

        Args:
            resume: continue from the checkpoint file instead of starting afresh.

        Raises:
            TrainingError: the loss is not finite any more, or students know less than nothing; the last checkpoint is
                kept.
            KeyboardInterrupt: after the state has been written, if there is a checkpoint file.
        """
        if self.config.needs_latency and self.processes.is_first and self.students[0].set.stopwatch is None:
            raise UsageError("a budget in latency needs something that measures it: see Engine.use")
        with torch_threads(self.config.threads), torch.random.fork_rng(devices=[]), freed_memory_kept():
            torch.manual_seed(self.config.seed)
            if self.checkpoint is not None and self.processes.is_first:
                remove_half_written(self.checkpoint.parent, self.checkpoint.name.__eq__)
            if resume:
                self._load()
            else:
                self._choose_precision()
                self._begin()
                self._save()
            with Interrupt() as interrupt:
                self._train(interrupt)
            return [self._finish(student) for student in self.students]

    def _begin(self) -> None:
        """Make students what they are to begin as."""
        if self.config.course != RECONSTRUCTED:
            return
        starts, self.facts = self.processes.first((self.starts, self.facts))
        if not starts:
            raise UsageError(f"the course {RECONSTRUCTED!r} needs what students are to begin as: see Engine.begin")
        self.starts = []
        for student, start in zip(self.students, starts, strict=True):
            student.begin(start)
            standing = self.judge.standing(student)
            self.starts.append(replace(start, standing=standing))
            _log.info(
                "student %d starts with agreement %.4f and loss %.4f",
                student.number,
                standing.agreement,
                standing.distance,
            )

    def _train(self, interrupt: Interrupt) -> None:
        saved_at = time.monotonic()
        while self.done < self.schedule.total:
            if self.done == self.schedule.freeze_bn_at:
                self._freeze_bn()
            step, worked = self.done, time.process_time()
            try:
                loss = self._train_step(step, self._batch(*divmod(step, self.batches.steps_per_epoch)))
            except TrainingError as error:
                if not self.starts:
                    raise
                _log.warning("%s", error)  # what students began as is there to be delivered
                return
            self.step_seconds += time.process_time() - worked
            self.done = step + 1
            if self.done % self.schedule.eval_every == 0 or self.done == self.schedule.total:
                self._measure()
            if self.progress is not None:
                self.progress(
                    self.done, self.schedule.total, loss, self.students[0].shares(), self.schedule.phase(step)
                )
            last = self.done == self.schedule.total
            (asked,) = self.processes.mean(
                float(interrupt.asked)
            )  # one that stops alone would leave the others waiting
            # What a training leaves that is about to diverge is of no use to go on from.
            due = self._is_save_due(time.monotonic() - saved_at) and self.divergence.is_far_off
            if last or asked or due:
                self._save()
                saved_at = time.monotonic()
            if asked:
                raise KeyboardInterrupt
        self._freeze_bn()  # where statistics have followed the batches to the end

    def _freeze_bn(self) -> None:
        for student in self.students:
            if not student.is_bn_frozen:
                student.freeze_bn(self._calibration())

    def _train_step(self, step: int, batch: Batch) -> float:
        learning = learning_at(step, self.students, self.config.students_per_step)
        target, target_features = self.teacher.targets(batch)
        with self.precision.autocast():
            answers = [student(batch) for student in learning]
        total, terms = self.objective(target, target_features, learning, answers)
        (value,) = self.processes.mean(float(total.detach()) / len(learning))
        (worst,) = self.processes.mean(max(term["out"] for term in terms))
        self.divergence.refuse(step, value, worst)
        for student, term in zip(learning, terms, strict=True):
            self._losses[student.number] = term
            student.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        for student in learning:
            self.processes.mean_gradients_(student.module.parameters())
            student.learn(step, self.schedule)
        for student in self.students:
            student.advance(step, self.schedule)
        return value

    def _choose_precision(self) -> None:
        precision, seconds = choose_precision(self.config.precision, self._trial_step, self.device)
        measured = ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
        _log.info("precision: %s (seconds a step: %s)", precision, measured or "not measured")
        self._use(Precision(**self.processes.first(precision.to_dict())))

    def _trial_step(self, precision: Precision) -> None:
        """One training step without a trace, for measuring how long it takes."""
        module = copy.deepcopy(self.students[0].module)
        precision.convert_(module)
        student = module.with_taps((), self.learned.nodes)
        student.train()
        with precision.autocast():
            inputs = tensors_of(changed(self._batch(0, 0), precision.images))
            outputs = flatten_outputs(student(*inputs)[0])
        torch.autograd.backward(torch.stack([output.float().square().mean() for output in outputs]).sum())

    # -- measuring ---------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        for student, losses, history in zip(self.students, self._losses, self.history, strict=True):
            record: dict[str, Any] = {
                "step": self.done,
                "epoch": self.done / self.batches.steps_per_epoch,
                "phase": self.schedule.phase(self.done - 1),
                "loss": sum(losses.values()),
                **{f"loss_{name}": value for name, value in losses.items()},
                "agreement": self.judge.agreement(student),
                **student.shares(),
                "zero_groups": int(student.set.dead.sum()),
            }
            if self.observer is not None:
                student.module.eval()
                record.update({name: float(value) for name, value in self.observer(student.module).items()})
                student.module.train()
            history.append(record)
            _log.info(
                "step %d/%d %s: student %d loss %.4f agreement %.4f %s",
                self.done,
                self.schedule.total,
                record["phase"],
                student.number,
                record["loss"],
                record["agreement"],
                " ".join(f"{unit} {share:.3f}" for unit, share in student.shares().items()),
            )

    def _calibration(self) -> Iterator[Batch]:
        """Training batches that no step has seen in this form.

        Augmented, as in training: weights have settled to the statistics of such images (measured: those of plain
        images cost up to ten points of agreement on handwritten digits).
        """
        epoch = 1 + self.schedule.total // self.batches.steps_per_epoch
        count = math.ceil(self.config.calibration_images / self.batches.batch_size)
        for number in range(count):
            step = number % self.batches.steps_per_epoch
            yield self._batch(epoch + number // self.batches.steps_per_epoch, step)

    @torch.no_grad()
    def _finish(self, student: Student) -> StudentResult:
        student.module.eval()
        assert torch.equal(student.set.dead, student.set.expected), "a group of the final set is not zero"
        removed = student.removed()
        result = StudentResult(
            number=student.number,
            state_dict=student.dense_state(),
            removed=removed,
            plan=self.graph.plan(removed),
            cost=student.shares(),
            agreement=self.judge.agreement(student),
            history=self.history[student.number],
        )
        return self._no_worse(result, student) if self.starts else result

    def _no_worse(self, result: StudentResult, student: Student) -> StudentResult:
        """The result, or what the student began as where that stands better on the images held out."""
        start, now = self.starts[student.number], self.judge.standing(student)
        assert start.standing is not None
        result = replace(result, start=start.standing)
        if not now.is_worse_than(start.standing):
            return result
        _log.warning(
            "student %d has become worse by learning, on %d images held out: agreement %.4f, loss %.4f; what it "
            "began as, fitted in closed form, is delivered instead: agreement %.4f, loss %.4f; try a lower `lr` (now "
            "%g)",
            *(student.number, len(self.held_out), now.agreement, now.distance),
            *(start.standing.agreement, start.standing.distance, self.config.peak_lr),
        )
        return replace(result, state_dict=dict(start.state_dict), agreement=start.standing.agreement, is_start=True)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _is_save_due(self, seconds: float) -> bool:
        config = self.config
        by_steps = config.checkpoint_steps and self.done % config.checkpoint_steps == 0
        by_time = config.checkpoint_seconds and seconds >= config.checkpoint_seconds
        return bool(by_steps or by_time)

    def _use(self, precision: Precision) -> None:
        self.precision = replace(precision, device=str(self.device))
        self.teacher.use(self.precision)
        for student in self.students:
            student.use(self.precision)

    def _save(self) -> None:
        if self.checkpoint is None or not self.processes.is_first:
            return
        for student in self.students:
            for name, tensor in student.module.state_dict().items():
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise TrainingError(
                        f"{name} is not finite after step {self.done}; start afresh with a lower `lr` (now "
                        f"{self.config.peak_lr:g})"
                    )
        save_checkpoint(
            self.checkpoint,
            {
                "fingerprint": self.config.fingerprint(),
                "model": self.digest,
                "precision": self.precision.to_dict(),
                "step": self.done,
                "step_seconds": self.step_seconds,
                "worst": self.divergence.worst,
                "losses": self._losses,
                "images": self.batches.origin(),
                "random": torch.get_rng_state(),
                "students": [student.state() for student in self.students],
                "history": self.history,
                "starts": [start.state() for start in self.starts],
                "facts": self.facts,
            },
        )

    def _load(self) -> None:
        if self.checkpoint is None:
            raise UsageError("cannot resume: this run has no checkpoint file")
        state = load_checkpoint(self.checkpoint, self.config, self.digest)
        self.batches.refuse_other(state["images"])
        self._use(Precision(**state["precision"]))  # on the device of this run
        for student, saved in zip(self.students, state["students"], strict=True):
            student.load_state(saved)
        self.done = state["step"]
        self.step_seconds = state["step_seconds"]
        self.divergence.worst = state["worst"]
        self._losses = state["losses"]
        self.history = state["history"]
        self.starts = [Start.of_state(start) for start in state.get("starts", ())]
        self.facts = state.get("facts", {})
        torch.set_rng_state(state["random"])
