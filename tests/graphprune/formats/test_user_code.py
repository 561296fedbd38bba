import sys

import pytest

import graphprune as gp
from graphprune.formats.user_code import import_function, import_rules
from graphprune.passes.channels.rules import TABLE

RULES = """
import graphprune as gp
from graphprune.passes.channels import patterns
held = gp.register_rule("of a folder", patterns.elementwise(), torch="folder::op")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [
        name for name, module in sys.modules.items() if str(tmp_path) in (getattr(module, "__file__", 0) or "")
    ]:
        del sys.modules[name]


def test_rules_of_the_current_folder_are_registered_and_the_path_is_left_as_it_was(folder):
    (folder / "my_rules.py").write_text(RULES)
    before = list(sys.path)
    module = import_rules("my_rules")
    assert sys.path == before
    assert TABLE.torch_rule("folder::op")[0].name == "of a folder"
    assert import_rules("my_rules") is module  # once more is no mistake
    module.held.remove()


@pytest.mark.parametrize(
    ("text", "name", "kind", "message"),
    [
        (None, "my_rules", gp.RuleError, "`rules`: there is no module my_rules, neither installed nor in the current"),
        (
            "import of_another_world",
            "my_rules",
            gp.RuleError,
            "`rules`: importing my_rules failed: ModuleNotFoundError",
        ),
        ("1 / 0", "my_rules", gp.RuleError, "`rules`: importing my_rules failed: ZeroDivisionError: division by zero"),
        ("raise SystemExit", "my_rules", gp.RuleError, "`rules`: importing my_rules failed: SystemExit"),
        (RULES.replace("folder::op", "aten::relu"), "my_rules", gp.RuleError, "RuleError: two rules for relu"),
        ("", "my_rules.py", gp.UsageError, "`rules='my_rules.py'` is no module: write package.module, without .py"),
        ("", "my-rules", gp.UsageError, "`rules='my-rules'` is no module: write package.module, without .py"),
        ("", "", gp.UsageError, "is no module"),
    ],
)
def test_rules_that_cannot_be_imported_are_one_line(folder, text, name, kind, message):
    if text is not None:
        (folder / "my_rules.py").write_text(text)
    with pytest.raises(kind) as caught:
        import_rules(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("judges", "names no function: write package.module:function"),
        ("judges.py:best", "has no function|no module"),
        ("judges:", "names no function"),
        ("judges:other", "judges has no function other"),
        ("elsewhere:best", "there is no module elsewhere"),
    ],
)
def test_a_function_that_is_named_is_imported_or_refused_in_one_line(folder, name, message):
    (folder / "judges.py").write_text("def best(dense, slim):\n    return 1.0\n")
    assert import_function("judges:best", "`metric`")({}, {}) == 1.0
    with pytest.raises(gp.UsageError, match=message) as caught:
        import_function(name, "`metric`")
    assert str(caught.value).startswith("`metric`: ")
