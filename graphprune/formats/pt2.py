"""Loading a torch.export archive (.pt2) without running code from it.

`torch.export.load` trusts its file. Code in an archive runs
1. when records are unpickled: example inputs, custom objects, tensor subclasses, old weight formats;
2. when symbolic sizes are parsed (`expr_str`): sympy evaluates the string as Python;
3. when the graph is compiled: names of values and attributes are written into generated source, and so
   are the guards on the inputs;
4. when the graph runs: a node may name any function below `torch`, one that loads a library among them;
5. when a compiled model (AOTInductor) is loaded: it is a shared library.

So the archive is read here first and refused unless it holds what the export of a network holds: known
records, names of harmless characters, known operators and those that a rule was registered for, arithmetic
on sizes. Whatever is not known to be harmless is refused, and unpickling is restricted to tensors and
containers. The check and the loader see the same bytes through the same reader.
"""

import ast
import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

# torch.export.load falls back to an older format, read with another reader, when this fails.
from torch.export.pt2_archive._package import load_pt2

from graphprune.passes.channels.rules import TABLE
from graphprune.passes.errors import ModelLoadError
from graphprune.passes.fx.quiet import kept_quiet

# What a damaged or foreign file makes torch raise.
BROKEN_FILE = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OSError,
    EOFError,
    struct.error,
)

_GRAPH = "models/model.json"
_JSON_RECORDS = (_GRAPH, "data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PICKLED_RECORDS = ("data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt")
_RECORD = re.compile(
    r"|".join(re.escape(name) for name in (*_JSON_RECORDS, *_PICKLED_RECORDS))
    + r"|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|extra/.*|archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment|\.data/\w+"
)

_NAME = re.compile(r"[\w.\-]*", re.ASCII)
_STRING_ARGUMENT = re.compile(r"[^'\"\\{}\n\r]*")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.\w+\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_autocast|wrap_with_set_grad_enabled)"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|or_|pos|pow|rshift|sub|truediv)"
    r"|math\.(ceil|floor|trunc)|torch\.(_sym_\w+|sym_\w+)",
    re.ASCII,
)
_OTHER_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.((?!__)\w+)", re.ASCII)
_EXPRESSION = re.compile(r"[\w\s\[\]().,'<>=!+\-*/%&|~]*", re.ASCII)
_EXPRESSION_NODES = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Attribute, ast.Subscript),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_VALUE_NAME = re.compile(r"[a-z]{1,4}\d+|L|args|true|false|oo|int_oo|inf|math", re.ASCII)
# sympy's and torch's functions on sizes are classes, so their names have a capital; no builtin's has.
_FUNCTION_NAME = re.compile(r"[A-Z][A-Za-z]*|abs|bool|ceiling|float|floor|int|max|min|round", re.ASCII)
_TENSOR_METHODS = ("dim", "numel", "size", "storage_offset", "stride")
_MATH_FUNCTIONS = ("ceil", "floor", "inf", "isnan", "log2", "pow", "sqrt", "trunc")
_TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


class _Suspect(Exception):
    """Part of an archive is not known to be harmless."""


def load_archive(path: Path, *, trust: bool) -> ExportedProgram:
    """Return the program in a torch.export archive.

    Args:
        path: of the archive.
        trust: skip the check, and allow everything that `torch.export.load` does.

    Raises:
        ModelLoadError: the file is no archive, is broken, or holds something that could run code.
    """
    if not zipfile.is_zipfile(path):
        raise ModelLoadError(f"{path} is no torch.export archive, or is cut short")
    data = path.read_bytes()
    with kept_quiet():
        try:
            if not trust:
                _check_archive(PT2ArchiveReader(io.BytesIO(data)))
            with _weights_only(not trust):
                programs = load_pt2(io.BytesIO(data)).exported_programs
        except (_Suspect, pickle.UnpicklingError) as error:
            what = error if isinstance(error, _Suspect) else "a record is a pickle of more than tensors"
            raise ModelLoadError(
                f"{path} could run code when it is loaded: {what}; pass `trust_pickle=True` if you trust the file"
            ) from error
        except BROKEN_FILE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". This is an internal")[0]
            raise ModelLoadError(f"{path} is no readable torch.export archive: {reason}") from error
    if "model" not in programs:
        raise ModelLoadError(f"{path} holds no exported program named model; save it with torch.export.save")
    return programs["model"]


def _check_archive(reader: PT2ArchiveReader) -> None:
    for record in reader.get_file_names():
        if not _RECORD.fullmatch(record):
            raise _Suspect(f"it has the record {record!r}")
        if record in _JSON_RECORDS:
            _check(json.loads(reader.read_bytes(record)), "")
        elif record in _PICKLED_RECORDS:
            _check_keys(torch.load(io.BytesIO(reader.read_bytes(record)), map_location="cpu", weights_only=True))


def _check(value: Any, key: str) -> None:
    """Raise _Suspect unless this part of the description, found under this key, is harmless."""
    if isinstance(value, dict):
        if key == "metadata" and all(isinstance(inner, str) for inner in value.values()):
            return  # kept beside a node as text and never parsed: its stack trace, its module
        for name, inner in value.items():
            _require(_NAME, name, f"a key in {key}")
            _check(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        _check_string(value, key)
    elif key == "use_pickle" and value:
        raise _Suspect("a tensor is stored as a pickle")


def _check_keys(value: Any) -> None:
    """Raise _Suspect unless all strings in these inputs or weights are harmless.

    Keys of dictionaries are written into the source of the guards.
    """
    if isinstance(value, dict):
        _check_keys(list(value))
        _check_keys(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_keys(inner)
    elif isinstance(value, str):
        _require(_NAME, value, "a name in the example inputs")


def _check_string(text: str, key: str) -> None:
    if key in ("target", "as_operator"):
        _check_operator(text)
    elif key in ("expr_str", "guards_code"):
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_tree(json.loads(text))
    elif key in ("as_string", "as_strings"):
        _require(_STRING_ARGUMENT, text, "a string argument")
    elif key != "torch_version":
        _require(_NAME, text, key)


def _check_operator(text: str) -> None:
    """Raise _Suspect unless this is an operator that networks are made of, or one that a rule was registered for."""
    if _OPERATOR.fullmatch(text):
        return
    other = _OTHER_OPERATOR.fullmatch(text)
    if other is None or TABLE.torch_rule(f"{other[1]}::{other[2]}.{other[3]}", f"{other[1]}::{other[2]}") is None:
        raise _Suspect(f"an operator is {text[:80]!r}")


def _require(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise _Suspect(f"{what} is {text[:80]!r}")


def _check_expression(text: str) -> None:
    """Raise _Suspect unless this is arithmetic on sizes."""
    _require(_EXPRESSION, text, "an expression")
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except SyntaxError as error:
        raise _Suspect(f"an expression is {text[:80]!r}") from error
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    if not all(_is_arithmetic(node, id(node) in called) for node in nodes):
        raise _Suspect(f"an expression is {text[:80]!r}")


def _is_arithmetic(node: ast.AST, called: bool) -> bool:
    match node:
        case ast.Name(id=name):
            return (_FUNCTION_NAME if called else _VALUE_NAME).fullmatch(name) is not None
        case ast.Attribute(value=ast.Name(id="math"), attr=attribute):
            return attribute in _MATH_FUNCTIONS
        case ast.Attribute(attr=attribute):
            return attribute in _TENSOR_METHODS
        case ast.Constant(value=str(constant)):
            return _NAME.fullmatch(constant) is not None
    return isinstance(node, _EXPRESSION_NODES)


def _check_tree(spec: Any) -> None:
    """Raise _Suspect unless the nesting of inputs or outputs is one of tuples, lists and dictionaries.

    Other types name a module to import.
    """
    if isinstance(spec, list):
        for inner in spec:
            _check_tree(inner)
    elif isinstance(spec, dict):
        if spec.get("type") not in _TREE_TYPES:
            raise _Suspect(f"inputs or outputs are of the type {spec.get('type')!r}")
        context = spec.get("context")
        _check(json.loads(context) if isinstance(context, str) else context, "a key of inputs or outputs")
        _check_tree(spec.get("children_spec", []))


@contextmanager
def _weights_only(active: bool) -> Iterator[None]:
    """Restrict every torch.load in the block, those that ask for more included."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    if active:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif active:
            del os.environ[name]
