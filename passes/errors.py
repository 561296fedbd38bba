"""Every error that GraphPrune raises for a reason the user can act on.

One tree, so that a caller can catch `GraphPruneError` alone. Each class carries the exit code of the
command line, so that the mapping stands in one place.
"""


class GraphPruneError(Exception):
    """Something is wrong that the user can act on. The message is one line: what, where, what to do."""

    exit_code = 1


class UsageError(GraphPruneError):
    """The arguments contradict each other or are out of range."""

    exit_code = 2


class UnsupportedModelError(GraphPruneError):
    """The model cannot be handled, and no other input of the user would change that."""

    exit_code = 3


class CaptureError(UnsupportedModelError):
    """`torch.export` could not capture the model as a graph."""


class ModelLoadError(GraphPruneError):
    """The model file is missing, is not what its suffix says, or needs a permission that was not given."""


class DataError(GraphPruneError):
    """The images are missing, unreadable, or not what the model takes."""


class PlanError(GraphPruneError):
    """The plan does not fit the model."""


class OutputExistsError(GraphPruneError):
    """A file or folder would be overwritten."""


class RuleError(GraphPruneError):
    """A rule for an operator of one's own cannot be registered, fails, or does not hold."""


class TrainingError(GraphPruneError):
    """The training diverged or was given nothing to learn from."""


class VerificationError(GraphPruneError):
    """Two models that must agree do not."""

    exit_code = 4


class BudgetError(GraphPruneError):
    """The budget cannot be, or was not, reached."""

    exit_code = 5


class UnfinishedError(GraphPruneError):
    """The slim model is made and delivered, something else that was asked for is not; `result` is what was made.

    The exit code is that of what went wrong.
    """

    def __init__(self, message: str, result: object = None, *, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.result = result
        self.exit_code = getattr(cause, "exit_code", 1)


class MissedBudgetError(BudgetError):
    """All files are made and checked, but the slim one is slower than was asked for; `result` is what was made."""

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result
