"""What scales and shifts channels is folded into the layer before it, where the layer has a place for it."""

import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run

from graphprune.passes.onnx.fold_affine import FoldBatchNormPass, FoldBiasPass


@pytest.mark.parametrize("step", [FoldBatchNormPass, FoldBiasPass])
@pytest.mark.parametrize(
    ("shape", "options", "folded"),
    [
        *(((), {}, True), ((1,), {}, True), ((4,), {}, True), ((1, 1), {}, True), ((1, 4), {}, True)),
        *(((4, 1), {}, False), ((4, 4), {}, False), ((4,), {"beta": 0.5}, False), ((4,), {"alpha": 2.0}, False)),
    ],
)
def test_the_bias_of_a_gemm_is_a_row(step, shape, options, folded):
    """With as many samples as channels, so that a column is as long as a row."""
    b = Builder(17)
    x = b.call("Gemm", b.input((4, 8)), b.weight(8, 4), b.literal(image(*shape)), **options)
    b.output(b.norm(x, 4) if step is FoldBatchNormPass else b.call("Add", x, b.vector(4)))
    model = b.model()
    loaded = ir.from_proto(model)
    assert step()(loaded).modified == folded
    feeds = {"x": image(4, 8)}
    assert difference(run(model, feeds), run(loaded, feeds)) < 1e-5
