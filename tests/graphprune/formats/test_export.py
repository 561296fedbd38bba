import copy
import logging

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import library, nn

from graphprune.errors import CaptureError, OutputExistsError, UnsupportedModelError, VerificationError
from graphprune.formats import export, onnx_files
from graphprune.formats.export import export_onnx
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.passes.fx.capture import capture
from graphprune.verification.verify import compare
from graphprune.version import __version__


def with_statistics(module):
    """Give every normalization statistics and scales that are not the neutral ones."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return module


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = torch.relu(self.stem(image))
        x = torch.relu(self.depthwise(x) + x)
        return self.head(self.dropout(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)))


@pytest.fixture(scope="module")
def residual():
    return with_statistics(Residual())


@pytest.fixture(scope="module")
def exported(residual, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    path = export_onnx(residual.train(), (torch.randn(1, 3, 8, 8),), folder / "net.onnx", metadata={"source": "a test"})
    return onnx.load(path), path


def dims(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def image(*shape):
    return torch.randn(*(shape or (2, 3, 8, 8)))


def test_the_batch_is_called_batch_throughout(exported):
    model, _ = exported
    assert [(v.name, dims(v)) for v in model.graph.input] == [("input", ["batch", 3, 8, 8])]
    assert [(v.name, dims(v)) for v in model.graph.output] == [("output", ["batch", 5])]
    symbols = {d for value in model.graph.value_info for d in dims(value) if isinstance(d, str)}
    assert symbols == {"batch"}


def test_normalization_is_folded_and_nothing_is_left_over(exported):
    model, _ = exported
    ops = [node.op_type for node in model.graph.node]
    assert not {"BatchNormalization", "Identity", "Dropout", "Constant"} & set(ops)
    assert ops.count("Conv") == 2
    # What is listed as an input may be overridden, and is no constant to onnxruntime.
    assert [value.name for value in model.graph.input] == ["input"]
    assert (model.ir_version, model.opset_import[0].version) == (10, 20)
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used


def test_the_file_says_who_wrote_it_and_nothing_of_the_machine(exported):
    model, path = exported
    assert (model.producer_name, model.producer_version) == ("graphprune", __version__)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"source": "a test"}
    assert b"site-packages" not in path.read_bytes()
    assert b"test_export" not in path.read_bytes()


def test_the_training_mode_is_left_as_it_was(residual, exported):
    assert residual.training
    assert residual.dropout.training


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_every_batch_gives_what_the_model_gives(residual, exported, batch):
    assert compare(residual, exported[1], image(batch, 3, 8, 8), rtol=1e-5, unoptimized=True).equal


def test_the_cost_is_that_of_the_network(exported):
    cost = onnx_cost(exported[1])
    assert cost.macs == 64 * 8 * 27 + 64 * 8 * 9 + 40
    assert cost.params == 8 * 27 + 8 + 8 * 9 + 8 + 45


CONVOLUTIONS = (
    nn.Conv2d(3, 6, 3),
    nn.Conv2d(6, 6, 3, groups=3, bias=False),
    nn.ConvTranspose2d(6, 6, 3),
    nn.ConvTranspose2d(6, 6, 3, groups=3, bias=False),
)


def test_normalization_is_folded_into_every_kind_of_layer(tmp_path):
    layers = [layer for conv in CONVOLUTIONS for layer in (conv, nn.BatchNorm2d(6), nn.ReLU())]
    layers[-2] = nn.BatchNorm2d(6, affine=False)
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(384, 8, bias=False), nn.BatchNorm1d(8))
    path = export_onnx(with_statistics(module), (image(),), tmp_path / "m.onnx")
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops == ["Conv", "Relu"] * 2 + ["ConvTranspose", "Relu"] * 2 + ["Reshape", "Gemm"]


class TwoUses(nn.Module):
    """One convolution whose result is normalized twice: neither can be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.one(y) * self.two(y)


class Recurrent(nn.Module):
    """One convolution that is used twice, with another normalization after each: its weight is that of both."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.two(self.conv(torch.relu(self.one(self.conv(x)))))


@pytest.mark.parametrize("kind", [TwoUses, Recurrent])
def test_normalization_that_cannot_be_folded_stays_and_is_right(tmp_path, caplog, kind):
    path = export_onnx(with_statistics(kind()), (image(),), tmp_path / "m.onnx")
    assert [node.op_type for node in onnx.load(path).graph.node].count("BatchNormalization") == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.slow
def test_captured_modules_and_exported_programs_give_the_same_file(tmp_path, residual):
    from graphprune.passes.fx.capture import capture

    x = image()
    free = ({0: torch.export.Dim.AUTO},)
    learning = torch.export.export(copy.deepcopy(residual).train(), (x,), dynamic_shapes=free)
    program = torch.export.export(residual.eval(), (x,), dynamic_shapes=free)
    captured = capture(residual, (x,)).train()
    for name, model in (("captured", captured), ("program", program), ("learning", learning)):
        path = export_onnx(model, (x[:1],), tmp_path / f"{name}.onnx")
        assert dims(onnx.load(path).graph.input[0]) == ["batch", 3, 8, 8]
        assert compare(residual, path, image(5, 3, 8, 8), rtol=1e-5).equal
    assert captured.training


class Correlated(nn.Module):
    """Each image is filtered with its own kernel: as many groups as images, which ONNX knows as a number only."""

    def forward(self, x):
        n, c, h, w = x.shape
        found = nn.functional.conv2d(x.reshape(1, n * c, h, w), x[:, :, :3, :3], groups=n)
        return found.reshape(n, 1, *found.shape[2:])


def test_what_a_free_batch_cannot_be_written_for_gets_a_fixed_one(tmp_path, caplog):
    x = image(2, 3, 8, 8)
    path = export_onnx(Correlated(), (x,), tmp_path / "m.onnx")
    assert dims(onnx.load(path).graph.input[0]) == [2, 3, 8, 8]
    assert compare(Correlated(), path, x, rtol=1e-5).equal
    (said,) = [record.getMessage() for record in caplog.records if "fixed batch" in record.getMessage()]
    assert "node conv2d: " in said
    assert len(said) < 300


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.view(4, -1).sum(1, keepdim=True) * torch.ones(4, 7)


def test_a_model_with_a_fixed_batch_is_exported_with_it(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "graphprune"):
        path = export_onnx(FixedBatch(), (image(4, 3, 8, 8),), tmp_path / "m.onnx")
    assert dims(onnx.load(path).graph.input[0]) == [4, 3, 8, 8]
    assert any("fixed batch" in record.getMessage() for record in caplog.records)
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_a_static_program_keeps_its_batch(tmp_path, residual):
    x = image(3, 3, 8, 8)
    path = export_onnx(torch.export.export(residual.eval(), (x,)), (x,), tmp_path / "m.onnx")
    assert dims(onnx.load(path).graph.input[0]) == [3, 3, 8, 8]


class Several(nn.Module):
    def forward(self, image, mask, offset):
        return {"logits": (image + offset).mean((2, 3)), "aux": [image * mask, image * 2]}


def test_several_inputs_and_outputs_have_stable_names(tmp_path):
    inputs = (image(), image(2, 1, 8, 8), torch.randn(3, 1, 1))
    model = onnx.load(export_onnx(Several(), inputs, tmp_path / "m.onnx"))
    assert [(v.name, dims(v)[0]) for v in model.graph.input] == [("image", "batch"), ("mask", "batch"), ("offset", 3)]
    assert [v.name for v in model.graph.output] == ["logits", "aux_0", "aux_1"]


class Same(nn.Module):
    def forward(self, x):
        y = torch.relu(x)
        return y, y, x


def test_outputs_that_are_one_value_or_an_input_still_run(tmp_path):
    path = export_onnx(Same(), (image(),), tmp_path / "m.onnx")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_outputs()] == ["output_0", "output_1", "output_2"]
    x = image().numpy()
    one, same, given = session.run(None, {"input": x})
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(given, x)


def test_weights_too_small_to_matter_are_zero(tmp_path):
    conv = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        conv.weight[0] = 1e-39
        conv.weight[1] = -1e-31
        conv.weight[2] = 1e-20
    path = export_onnx(nn.Sequential(conv, nn.BatchNorm2d(4)), (image(),), tmp_path / "m.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    (weight,) = [array for array in stored.values() if array.ndim == 4]
    assert (weight[:2] == 0).all()
    assert (weight[2:] != 0).all()
    assert float(conv.weight[0].detach().abs().max()) > 0


class Talkative(nn.Module):
    def forward(self, x):
        print("here")  # noqa: T201
        return torch.relu(x)


def test_nothing_reaches_the_terminal_and_logging_is_as_before(tmp_path, capfd, recwarn):
    logging.getLogger("torch.onnx").setLevel(logging.INFO)
    try:
        export_onnx(Talkative(), (image(),), tmp_path / "m.onnx")
        assert logging.getLogger("torch.onnx").level == logging.INFO
    finally:
        logging.getLogger("torch.onnx").setLevel(logging.NOTSET)
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if issubclass(w.category, UserWarning | FutureWarning)]


def test_an_existing_file_needs_force(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="`force=True`"):
        export_onnx(nn.ReLU(), (image(),), path)
    assert path.read_text() == "mine"
    export_onnx(nn.ReLU(), (image(),), path, force=True)
    assert onnx.load(path).graph.node[0].op_type == "Relu"


class Broken(nn.Module):
    def forward(self, x):
        raise KeyError("this is the model's own\nproblem")


class DataDependent(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


@library.custom_op("of_export::half", mutates_args=())
def half(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@half.register_fake
def _(x):
    return torch.empty_like(x)


class Own(nn.Module):
    def forward(self, x):
        return torch.ops.of_export.half(x)


class Random(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Broken(), CaptureError, "does not run on the example inputs: .*own"),
        (DataDependent(), CaptureError, r"torch\.export cannot capture the model: .*test_export\.py:\d+\)"),
        (Eigenvalues(), UnsupportedModelError, r"operator aten\.linalg_eig has no ONNX counterpart$"),
        (
            Own(),
            UnsupportedModelError,
            r"of_export\.half has no ONNX counterpart; register_rule\(\.\.\., to_onnx=\.\.\.\)",
        ),
        (Random(), VerificationError, r"m\.onnx does not compute what the torch model does: output 'output'"),
    ],
)
def test_a_failed_export_is_one_line_and_writes_nothing(tmp_path, capfd, module, error, message):
    with pytest.raises(error, match=message) as caught:
        export_onnx(module, (image(),), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_inputs_that_are_no_tensors_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="example input 1 is a dict"):
        export_onnx(Several(), (image(), {}, image()), tmp_path / "m.onnx")


def test_a_file_that_computes_something_else_is_never_written(tmp_path, monkeypatch, residual):
    tidy = export._tidy

    def sabotage(*args):
        model = tidy(*args)
        value = model.graph.initializers[
            next(name for name, v in model.graph.initializers.items() if len(v.shape) == 4)
        ]
        value.const_value = export.ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
        return model

    monkeypatch.setattr(export, "_tidy", sabotage)
    with pytest.raises(VerificationError, match="does not compute"):
        export_onnx(residual, (image(),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_large_models_keep_their_weights_beside_the_file(tmp_path, monkeypatch, residual):
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_BYTES", 100)
    path = export_onnx(residual, (image(),), tmp_path / "big.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert compare(residual, path, image(5, 3, 8, 8), rtol=1e-5).equal


def test_another_opset_can_be_asked_for(tmp_path, residual):
    path = export_onnx(residual, (image(),), tmp_path / "m.onnx", opset=18)
    assert onnx.load(path).opset_import[0].version == 18


# -- sizes that a captured graph leaves free, and arguments that are no tensors -----------------------------


class Upscale(nn.Module):
    """Images in, larger ones out; with a skip that needs even sizes where it is asked for."""

    def __init__(self, is_even=False):
        super().__init__()
        self.is_even = is_even
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x, times=1, shift=None):
        y = self.up(self.down(x).relu()) * times
        return y + x if self.is_even else y


def free_program(model, *more):
    auto = torch.export.Dim.AUTO
    call = (torch.rand(2, 3, 16, 16), *more)
    free = ({0: auto, 2: auto, 3: auto}, *(None for _ in more))
    return torch.export.export(model.eval(), call, dynamic_shapes=free), call


def test_height_and_width_stay_free_where_a_program_leaves_them_so(tmp_path, caplog):
    model = Upscale(is_even=True)
    program, call = free_program(model)
    for number, given in enumerate((program, capture(program))):
        path = export_onnx(given, call, tmp_path / f"{number}.onnx")
        (value,) = onnx.load(path).graph.input
        assert dims(value) == ["batch", 3, "height", "width"]
        for size in ((16, 16), (20, 34), (8, 40)):
            assert compare(model, path, torch.rand(3, 3, *size)).equal
    assert "height" not in caplog.text


@pytest.mark.slow
def test_two_images_of_free_sizes_have_names_of_their_own(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

        def forward(self, image, mask):
            return self.a(image).mean((2, 3)) + self.b(mask).mean((2, 3))

    auto = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    call = (torch.rand(2, 3, 8, 9), torch.rand(2, 1, 10, 11))
    program = torch.export.export(Two().eval(), call, dynamic_shapes=(auto, auto))
    path = export_onnx(program, call, tmp_path / "m.onnx")
    assert [dims(value) for value in onnx.load(path).graph.input] == [
        ["batch", 3, "height", "width"],
        ["batch", 1, "mask_height", "mask_width"],
    ]


def test_free_sizes_that_a_file_cannot_have_are_told_of(tmp_path, caplog, monkeypatch):
    program, call = free_program(Upscale())
    whole = torch.export.export

    def refuse(module, inputs, dynamic_shapes=None, **options):
        if dynamic_shapes and any(at for dims in dynamic_shapes for at in dims or {}):
            raise RuntimeError("no such thing")
        return whole(module, inputs, dynamic_shapes=dynamic_shapes, **options)

    monkeypatch.setattr(torch.export, "export", refuse)
    path = export_onnx(program, call, tmp_path / "m.onnx")
    assert dims(onnx.load(path).graph.input[0]) == ["batch", 3, 16, 16]
    assert "takes one height and width, others are not possible: no such thing" in caplog.text


def test_a_graph_that_takes_no_other_size_is_told_of(tmp_path, caplog):
    """Captured for any size, by torch's account; but its code needs one."""

    class OneSize(nn.Module):
        def forward(self, x):
            return torch.nn.functional.avg_pool2d(x, 2).flatten(1) @ torch.ones(3 * 64, 4)

    captured = capture(OneSize(), (torch.rand(2, 3, 16, 16),))
    (node,) = captured.graph.find_nodes(op="placeholder")
    (free,) = capture(free_program(Upscale())[0]).graph.find_nodes(op="placeholder")
    node.meta["val"] = free.meta["val"]
    path = export_onnx(captured, captured.example_inputs, tmp_path / "m.onnx")
    assert dims(onnx.load(path).graph.input[0]) == ["batch", 3, 16, 16]
    assert "captured for any height and width, but takes no others" in caplog.text


def test_flags_are_written_into_the_file(tmp_path):
    model = Upscale().eval()
    call = (torch.rand(2, 3, 16, 16), 3, None)
    program = torch.export.export(model, call)
    for number, given in enumerate((model, program)):
        path = export_onnx(given, call, tmp_path / f"{number}.onnx")
        assert len(onnx.load(path).graph.input) == 1
        x = torch.rand(2, 3, 16, 16)
        found = ort.InferenceSession(path).run(None, {"input": x.numpy()})[0]
        np.testing.assert_allclose(found, model(x, 3).detach().numpy(), atol=1e-5)
    names = {tensor.name for tensor in onnx.load(tmp_path / "0.onnx").graph.initializer}
    assert {"down.weight", "up.weight"} <= names  # a plan finds them
