import json

import onnx.parser
import pytest

from graphprune.cli import main

QUICK = ["--min-seconds", "0.001"]


def write(path, dims="n,8"):
    text = f'<ir_version: 8, opset_import: ["" : 17]> net (float[{dims}] x) => (float[{dims}] y) {{ y = Relu(x) }}'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return str(path)


def test_the_table_is_on_stdout_and_nothing_else(tmp_path, capsys):
    assert main(["benchmark", write(tmp_path / "dense.onnx"), write(tmp_path / "slim.onnx"), *QUICK]) == 0
    captured = capsys.readouterr()
    rows = [line.split("|")[1].strip() for line in captured.out.splitlines() if line.startswith("|")]
    assert rows == ["model", "-" * len(rows[1]), "dense", "slim"]
    assert "onnxruntime" in captured.out.splitlines()[-1]
    assert captured.err.startswith("measuring dense, slim")


def test_json_is_a_versioned_document(tmp_path, capsys):
    files = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx")]
    options = ["--json", "--batch", "3", "--threads", "2", "--seed", "7", "--name", "one", "--name", "two"]
    assert main(["-q", "benchmark", *files, *options, *QUICK]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["schema"] == 2
    assert report["profiles"] == []
    (report,) = report["runs"]
    assert [model["name"] for model in report["models"]] == ["one", "two"]
    assert (report["batch"], report["threads"], report["seed"]) == (3, 2, 7)
    assert report["inputs"] == {"x": [3, 8]}
    assert all(line.startswith("warning: ") for line in captured.err.splitlines())  # of a small or a busy machine


def test_lists_of_batches_and_threads_are_one_table(tmp_path, capsys):
    files = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx")]
    assert main(["-q", "benchmark", *files, "--batch", "1,4", "--threads", "1,2", *QUICK]) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [tuple(cell.strip() for cell in row) for row in rows] == [
        ("model", "batch", "threads"),
        *((name, batch, threads) for threads in "12" for batch in "14" for name in "ab"),
    ]


def test_throughput(tmp_path, capsys):
    files = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx")]
    options = ["--mode", "throughput", "--streams", "2", "--no-pin", "--min-seconds", "0.01"]
    assert main(["-q", "benchmark", *files, *options]) == 0
    out = capsys.readouterr().out
    assert "samples/s" in out
    assert "throughput of a batch of 1, 2 streams, 1 thread each, CPU" in out


def test_a_profile_follows_the_table(tmp_path, capsys):
    path = write(tmp_path / "a.onnx")
    assert main(["-q", "benchmark", path, "--profile", *QUICK]) == 0
    assert "the most expensive kernels" in capsys.readouterr().out
    assert main(["-q", "benchmark", path, "--profile", "--json", *QUICK]) == 0
    (found,) = json.loads(capsys.readouterr().out)["profiles"]
    assert [(kernel["op_type"], kernel["layer"]) for kernel in found["kernels"]] == [("Relu", "Relu_0")]


def test_files_of_the_same_name_are_told_apart_by_their_folder(tmp_path, capsys):
    files = [write(tmp_path / "a" / "m.onnx"), write(tmp_path / "b" / "m.onnx")]
    assert main(["-q", "benchmark", *files, "--json", *QUICK]) == 0
    assert [model["name"] for model in json.loads(capsys.readouterr().out)["runs"][0]["models"]] == files


def test_a_shape_can_be_given(tmp_path, capsys):
    path = write(tmp_path / "m.onnx", dims="n,h")
    assert main(["-q", "benchmark", path, "--shape", "x:2x5", "--json", *QUICK]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["inputs"], run["batch"]) == ({"x": [2, 5]}, 2)


def test_a_shape_can_leave_the_batch_open(tmp_path, capsys):
    path = write(tmp_path / "m.onnx", dims="n,h")
    options = ["--shape", "x:?x5", "--batch", "1,4", "--json", "--profile"]
    assert main(["-q", "benchmark", path, *options, *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["batch"], run["inputs"]["x"]) for run in found["runs"]] == [(1, [1, 5]), (4, [4, 5])]
    assert found["profiles"][0]["batch"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{dir}/none.onnx"], 1, "none.onnx: no such file"),
        (["{dir}/text.onnx"], 1, "text.onnx: onnxruntime cannot load it"),
        (["{dir}/model.pt"], 1, "only .onnx files can be benchmarked"),
        (["{dir}"], 1, "is a folder"),
        (["{good}", "{good}"], 2, "given twice; tell them apart with --name"),
        (["{good}", "--name", "a", "--name", "b"], 2, "1 different names are needed"),
        (["{good}", "--shape", "x:1x9"], 2, "input 'x' is nx8, the shape given is 1x9"),
        (["{good}", "--provider", "MadeUp"], 2, "MadeUp is not in this onnxruntime"),
        (["{fixed}", "--batch", "1"], 2, "has a fixed batch of 4, 1 was asked for; give a batch of 4"),
        (["{good}", "{fixed}"], 2, "would run at a batch of 1"),
        (["{good}", "--shape", "1x8", "--batch", "1,16"], 2, "is for a batch of 1, 16 was asked for"),
        (["{good}", "--shape", "1x?"], 2, "is not a shape like 1x3x224x224"),
        (["{good}", "--batch", "1,x"], 2, "no list like 1,16"),
        (["{good}", "--threads", "0"], 2, "no number of at least 1"),
        (["{good}", "--streams", "2"], 2, "streams"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, arguments, code, message):
    (tmp_path / "text.onnx").write_text("no model at all\n")
    (tmp_path / "model.pt").write_bytes(b"PK")
    places = {
        "dir": tmp_path,
        "good": write(tmp_path / "good.onnx"),
        "fixed": write(tmp_path / "fixed.onnx", dims="4,8"),
    }
    assert main(["benchmark", *(argument.format(**places) for argument in arguments), *QUICK]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
