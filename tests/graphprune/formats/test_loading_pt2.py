"""Archives of torch.export: whole ones load, and those that would run code are refused.

The hostile ones are made from a good one. Where torch itself runs their code, a test shows it: otherwise the
refusal would prove nothing.
"""

import io
import json
import logging
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from graphprune.errors import ModelLoadError, UsageError
from graphprune.formats.loading import load_model
from graphprune.formats.pt2 import _check_expression, _Suspect
from graphprune.models import mobilenet_v2

Change = Callable[[str, bytes], bytes]


class Net(nn.Module):
    """Dynamic sizes, a subgraph, a constant, named outputs and a string argument in one graph."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4)
        self.heads = nn.ModuleDict({"seg-1": nn.Conv2d(4, 2, 1)})
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))) * self.scale
        half = x.shape[0] // 2
        with torch.no_grad():
            mean = x[:half].mean()
        return {"seg": self.heads["seg-1"](x), "sum": torch.einsum("bchw,c->bhw", x, x.new_ones(4)), "parts": [mean, x]}


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    torch.manual_seed(0)
    shape = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    return torch.export.export(Net().eval(), (torch.randn(4, 3, 8, 8),), dynamic_shapes=(shape,), strict=False)


@pytest.fixture
def archive(program, tmp_path) -> Path:
    path = tmp_path / "net.pt2"
    torch.export.save(program, path, extra_files={"note.json": '{"any": "text (here)"}'})
    return path


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def code(marker) -> str:
    return f"__import__('pathlib').Path('{marker}').touch()"


def test_archive_gives_the_program_back(program, archive, caplog, capfd):
    loaded = load_model(archive)
    assert isinstance(loaded, ExportedProgram)
    x = torch.randn(6, 3, 10, 8)
    torch.testing.assert_close(loaded.module()(x), program.module()(x))
    renamed = archive.with_suffix(".pt")
    shutil.copy(archive, renamed)
    assert isinstance(load_model(renamed), ExportedProgram)
    assert capfd.readouterr().err == ""
    assert not caplog.records
    with pytest.raises(UsageError, match="holds a whole model"):
        load_model(archive, arch="graphprune.models:resnet20")


def test_archive_of_a_reference_network_loads(tmp_path):
    model = mobilenet_v2(width=0.25)
    batch = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(
        torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=batch), tmp_path / "m.pt2"
    )
    assert set(load_model(tmp_path / "m.pt2").state_dict) == set(model.state_dict())


def test_broken_archives_are_one_line(archive, tmp_path, capfd):
    whole = archive.read_bytes()
    other = tmp_path / "other.pt2"
    with zipfile.ZipFile(other, "w") as opened:
        opened.writestr("a/b.txt", "hello")
    (tmp_path / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    flipped = rewritten(archive, lambda record, data: data[:-9] if record == "models/model.json" else data)
    version = rewritten(archive, lambda record, data: b"9" if record == "archive_version" else data)
    for path in (other, tmp_path / "cut.pt2", flipped, version):
        with pytest.raises(ModelLoadError, match=path.name) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        assert "could run code" not in str(caught.value)
    assert capfd.readouterr().err == ""


def rewritten(archive: Path, change: Change, **added: bytes) -> Path:
    """Return a copy of the archive with its records changed and others added."""
    path = archive.with_name(f"changed{len(list(archive.parent.iterdir()))}.pt2")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name.split("/", 1)[1], source.read(name)))
        for name, data in added.items():
            target.writestr(f"{source.namelist()[0].split('/')[0]}/{name}", data)
    return path


def in_graph(edit: Callable[[dict], object]) -> Change:
    def change(record: str, data: bytes) -> bytes:
        if record != "models/model.json":
            return data
        description = json.loads(data)
        edit(description)
        return json.dumps(description).encode()

    return change


def poisoned(code: str) -> bytes:
    class Payload:
        def __reduce__(self):
            return eval, (code,)

    stream = io.BytesIO()
    torch.save(((Payload(),), {}), stream)
    return stream.getvalue()


def set_size(description: dict, code: str) -> None:
    description["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = code


def with_pickled_weight(payload: bytes) -> Change:
    def change(record: str, data: bytes) -> bytes:
        if record == "data/weights/weight_0":
            return payload
        if record == "data/weights/model_weights_config.json":
            return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return data

    return change


def with_pickled_inputs(payload: bytes) -> Change:
    return lambda record, data: payload if record == "data/sample_inputs/model.pt" else data


def with_inputs(inputs: tuple) -> Change:
    stream = io.BytesIO()
    torch.save((inputs, {}), stream)
    return lambda record, data: stream.getvalue() if record == "data/sample_inputs/model.pt" else data


# What torch does with these is shown below.
RUNS_IN_TORCH: dict[str, Callable[[str], Change]] = {
    "example inputs": lambda code: with_pickled_inputs(poisoned(code)),
    "pickled weight": lambda code: with_pickled_weight(poisoned(code)),
    "symbolic size": lambda code: in_graph(lambda description: set_size(description, code)),
    "guard": lambda code: in_graph(lambda description: description["guards_code"].append(f"{code} is None")),
}


@pytest.mark.parametrize("kind", RUNS_IN_TORCH)
def test_torch_runs_the_code_of_hostile_archives(archive, marker, code, kind):
    path = rewritten(archive, RUNS_IN_TORCH[kind](code))
    logging.disable(logging.CRITICAL)
    # What the payload returns is no size and no weight, so torch may fail on it; it has run all the same.
    with suppress(Exception):
        torch.export.load(path).module()(torch.randn(4, 3, 8, 8))
    logging.disable(logging.NOTSET)
    assert marker.exists()


@pytest.mark.parametrize("kind", RUNS_IN_TORCH)
def test_hostile_archives_are_refused(archive, marker, code, kind):
    path = rewritten(archive, RUNS_IN_TORCH[kind](code))
    with pytest.raises(
        ModelLoadError, match=r"could run code when it is loaded: .*; pass `trust_pickle=True`"
    ) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def replace_everywhere(old: str, new: str) -> Change:
    return in_graph(lambda d: d.update(json.loads(json.dumps(d).replace(json.dumps(old), json.dumps(new)))))


@pytest.mark.parametrize(
    "change",
    [
        lambda code: replace_everywhere("conv2d", f"conv2d=0;{code};y"),
        lambda code: replace_everywhere("conv.weight", f'conv.weight")];{code};#'),
        lambda code: replace_everywhere("bchw,c->bhw", f"' + {code} + '"),
        lambda code: replace_everywhere("torch.ops.aten.relu.default", "torch.ops.load_library"),
        lambda code: replace_everywhere("torch.ops.aten.relu.default", "torch.serialization.os.system"),
        lambda code: in_graph(
            lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=[f"x={code}"])
        ),
        lambda code: in_graph(
            lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec=json.dumps([1, {"type": "enum.Enum", "context": '{"__enum__": true, "fqn": "antigravity:A"}'}])
            )
        ),
        lambda code: with_inputs(({f'x"); {code}; ("': torch.zeros(4, 3, 8, 8)},)),
        # A value may be named like a field that holds free text.
        lambda code: in_graph(
            lambda d: d["graph_module"]["graph"]["tensor_values"].update(
                metadata={"sizes": [{"as_expr": {"expr_str": code}}]}
            )
        ),
    ],
    ids=["name", "attribute", "string", "library", "function", "argument", "type", "inputs", "disguise"],
)
def test_whatever_becomes_source_text_is_refused(archive, marker, code, change):
    with pytest.raises(ModelLoadError, match="could run code"):
        load_model(rewritten(archive, change(code)))
    assert not marker.exists()


@pytest.mark.parametrize(
    "record",
    ["data/aotinductor/model/net.so", "data/constants/opaque_obj_0", "data/constants/custom_obj_0", "new/thing"],
)
def test_unknown_records_are_refused(archive, record):
    path = rewritten(archive, lambda _, data: data, **{record: pickle.dumps(1)})
    with pytest.raises(ModelLoadError, match=f"could run code .*{record}"):
        load_model(path)


def test_permission_allows_what_torch_allows(archive, marker, code):
    path = rewritten(archive, RUNS_IN_TORCH["example inputs"](code))
    assert isinstance(load_model(path, trust_pickle=True), ExportedProgram)
    assert marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "FloorDiv(Symbol('s0', integer=True), Integer(2))",
        "2*s0 + Max(1, s1//3) - Mod(s0, 2)",
        "(L['x'].size()[0] // 2) <= L['x'].size()[0]",
        "Eq(Mod(L['x'].stride()[0], 8), 0) and not math.ceil(s0/2) > inf",
    ],
)
def test_arithmetic_on_sizes_passes(text):
    _check_expression(text)
    assert compile(text, "size", "eval")


@pytest.mark.parametrize(
    "text",
    [
        "exit()",
        "Max(eval, 1)",
        "eval(chr(95) + chr(95))",
        "s0.__class__",
        "L['x'].apply_()",
        "math.__loader__",
        "Symbol('a b')",
        "[s0 for s0 in s1]",
        "lambda: 1",
        "f'{s0}'",
        "(s0 := 1)",
        "s0 if s1 else s2",
        "1 # comment",
        "ｅval()",
        "1;2",
        "",
    ],
)
def test_other_python_does_not(text):
    with pytest.raises(_Suspect):
        _check_expression(text)
