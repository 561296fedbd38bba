import dataclasses

import pytest
from digit_runs import SETTINGS, engine

from graphprune.data.batches import evaluation_batches


@pytest.mark.parametrize("setting", ["kl", "mse"])
def test_images_held_out_are_looked_at_a_few_at_a_time(monkeypatch, setting):
    run = engine(dataclasses.replace(SETTINGS, batch_size=8, output_loss=setting))
    seen = []
    run.teacher.tapped.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    run.judge.agreement(run.students[0])
    run.judge.agreement(run.students[0])
    times = 1 if setting == "kl" else 2
    assert seen == times * [len(batch) for batch in evaluation_batches(run.held_out, 32)]
