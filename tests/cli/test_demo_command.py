from functools import partial

import pytest
import torch

from graphprune import BenchmarkOptions, demo
from graphprune.cli import main


def test_the_whole_way(tmp_path, capsys, monkeypatch):
    torch.set_num_threads(1)
    out = tmp_path / "demo"
    # Half an epoch instead of ten, on some of the images, and a glance at the clock: what is shown here is the way, not
    # the result.
    every = demo.load_digits()
    some = demo.Digits(every.train[:400], every.train_labels[:400], every.val[:100], every.val_labels[:100])
    monkeypatch.setattr(demo, "load_digits", lambda: some)
    monkeypatch.setattr(demo, "compress", partial(demo.compress, benchmark=BenchmarkOptions(seconds=0.05)))
    monkeypatch.setattr(demo, "demonstrate", partial(demo.demonstrate, training_epochs=1, epochs=2))
    assert main(["demo", "-o", str(out)]) == 0
    stdout, stderr = capsys.readouterr()
    for row in ("MACs", "parameters", "file size", "latency", "agreement", "accuracy"):
        assert f"| {row}" in stdout
    assert str(out / "compressed" / "slim.onnx") in stdout
    assert f"graphprune compress {out / 'digits.pt2'}" in stdout
    assert "training the network with labels ..." in stderr
    assert {file.name for file in out.iterdir()} == {"digits", "digits.pt2", "compressed"}
    assert (out / "compressed" / "metrics.json").exists()

    assert main(["demo", "-o", str(out)]) == 1
    assert "--force" in capsys.readouterr().err


@pytest.mark.slow
def test_the_result_is_worth_showing(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo"), "--json"]) == 0
    import json

    metrics = json.loads(capsys.readouterr().out)
    accuracy = metrics["quality"]["accuracy"]
    assert accuracy["dense"] > 0.97
    assert accuracy["slim"] > accuracy["dense"] - 0.02
    assert metrics["reached"]["macs"] <= demo.MACS
    assert sum(metrics["seconds"].values()) < 120
