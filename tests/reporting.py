"""A reporter that keeps what it is told."""


class Log:
    """What a run reported.

    Attributes:
        stages: names of the stages, in order.
        steps: step, total and phase of every training step.
        parts: number and total of what was done without a training.
        evaluations: number, total and best agreement of every allocation that a search tried.
    """

    def __init__(self):
        self.stages, self.steps, self.evaluations, self.parts = [], [], [], []

    def stage(self, name):
        self.stages.append(name)

    def images(self, done, total):
        pass

    def part(self, done, total):
        self.parts.append((done, total))

    def evaluation(self, done, total, best):
        self.evaluations.append((done, total, best.agreement))

    def step(self, step, total, loss, cost, phase):
        self.steps.append((step, total, phase))
