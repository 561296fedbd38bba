"""Is a rule right? What `register_rule` was told of an operator, tried out on small networks of one's own.

    from graphprune.testing import Example, check_rule, randomize

    def test_my_rule():
        check_rule(
            "slope",
            Example(
                module=randomize(Net()),
                inputs=(torch.randn(2, 3, 8, 8),),
                groups=["first.weight/0[0] first.bias/0[0] slope/0[0] last.weight/1[0]", ...],
            ),
        )

Without torch, an `Example` holds an ONNX model alone.
"""

from graphprune.testing.check import RuleCheck, check_rule
from graphprune.testing.example import Example, randomize, written_out

__all__ = ["Example", "RuleCheck", "check_rule", "randomize", "written_out"]
