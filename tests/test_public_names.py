import subprocess
import sys
import warnings
from importlib import import_module

import pytest

import graphprune as gp


@pytest.mark.parametrize("name", gp.__all__)
def test_every_public_name_is_there(name):
    assert getattr(gp, name) is not None
    assert name in dir(gp)


def test_the_names_of_the_design_are_public():
    wanted = "trace plan mask slim export_onnx slim_onnx compress CompressConfig benchmark save load GraphPruneError"
    assert set(wanted.split()) <= set(gp.__all__)
    assert all(callable(getattr(gp, name)) for name in wanted.split())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        gp.prune  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import graphprune",
        "from graphprune import slim_onnx, PruningPlan, benchmark, CompressConfig, load_images, errors",
        "from graphprune import register_rule, testing; from graphprune.passes.channels import patterns",
        "import graphprune.passes.onnx, graphprune.cli.compress, graphprune.cli.slim, graphprune.cli.inspect",
    ],
)
def test_importing_does_not_bring_torch(code):
    check = f"{code}\nimport sys; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_module_does_not_hide_the_function_of_its_name(monkeypatch):
    """The module is imported anew, as the first import of a process does it: what it imports is there already."""
    import_module("graphprune.compress")
    monkeypatch.delitem(sys.modules, "graphprune.compress")
    monkeypatch.delitem(vars(gp), "compress", raising=False)
    module = import_module("graphprune.compress")
    assert gp.compress is module.compress
    # What an import of a submodule does to its package:
    setattr(gp, "compress", module)  # noqa: B010
    assert callable(gp.compress)


@pytest.mark.parametrize("old", gp._MOVED)
def test_a_module_that_moved_is_found_under_its_old_name(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    home = import_module(gp._MOVED[old])
    spec = home.__spec__
    with pytest.warns(DeprecationWarning, match=f"{old} is {gp._MOVED[old]} now") as caught:
        assert import_module(old) is home
    assert home.__name__ == gp._MOVED[old]
    assert home.__spec__ is spec
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_module(old) is home  # said once


def test_the_warning_names_the_line_that_imports(tmp_path):
    script = tmp_path / "old.py"
    script.write_text("x = 1\nfrom graphprune.files import atomic_write_json\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert f"{script}:2: DeprecationWarning: graphprune.files is graphprune.formats.files now" in done.stderr


def test_names_that_never_were_are_missing_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'graphprune\.pruning'"):
        import_module("graphprune.pruning")
