"""Matrix products."""

import torch
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator

__all__ = ["OPERATORS"]


def _gemm(call: Call) -> Tensor:
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    a = a.t() if call.attr("transA", 0) else a
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    if call.attr("transB", 0) and alpha == 1.0 and (c is None or (c.dim() == 1 and beta == 1.0)):
        return torch.nn.functional.linear(a, b, c)
    product = torch.matmul(a, b.t() if call.attr("transB", 0) else b)
    product = product if alpha == 1.0 else product * alpha
    return product if c is None else product + (c if beta == 1.0 else c * beta)


def _matmul(call: Call) -> Tensor:
    return torch.matmul(call.tensor(0), call.tensor(1))


def _einsum(call: Call) -> Tensor:
    return torch.einsum(call.attr("equation"), *[call.tensor(at) for at in range(len(call.inputs))])


def _fused_matmul(call: Call) -> Tensor:
    a, b = call.tensor(0), call.tensor(1)
    a = a.transpose(-1, -2) if call.attr("transA", 0) else a
    b = b.transpose(-1, -2) if call.attr("transB", 0) else b
    return torch.matmul(a, b) * call.attr("alpha", 1.0)


OPERATORS: dict[str, Operator] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "com.microsoft::FusedMatMul": _fused_matmul,
}
