"""What torch.save wrote, read without running code of the file.

torch reads tensors and containers without it, and stops at everything else. Checkpoints hold more than weights: the
arguments of a script, paths, counters, NumPy's numbers. Here

* NumPy's numbers become Python's,
* containers of the standard library become lists and dictionaries,
* an object of any other class becomes a `Foreign`, which knows the name of that class and nothing more.

Nothing is imported or called for any of them: a name in the file is looked up in a table of stand-ins.
"""

import logging
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from graphprune.formats.pt2 import BROKEN_FILE
from graphprune.formats.user_code import current_folder_importable, one_line
from graphprune.passes.errors import ModelLoadError

__all__ = ["Foreign", "needs_trust", "read_pickle"]

logger = logging.getLogger("graphprune")

_ZIP_START, _PICKLE_START = b"PK", b"\x80"
_MOST_NAMED = 3


class Foreign:
    """Stands for an object that was not loaded, since it is neither a tensor nor a container; see `class_of`.

    Attributes:
        class_name: of what it stands for.
    """

    class_name = ""

    def __new__(cls, *arguments: Any, **options: Any) -> "Foreign":
        """Return a stand-in, whatever the object would have been made from."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Forget what the object held."""


def read_pickle(path: Path, *, trust: bool) -> Any:
    """Return what torch.save stored in a file.

    Args:
        path: of the file.
        trust: allow its code to run, if it has any; else objects that would need it are `Foreign`.

    Raises:
        ModelLoadError: the file is none of torch.save's, is broken, or holds what cannot be read without its code.
    """
    with path.open("rb") as stream:
        start = stream.read(2)
    if not start.startswith((_ZIP_START, _PICKLE_START)):
        raise ModelLoadError(f"{path} was not written by torch.save: it starts with {start!r}")
    foreign: list[str] = []
    try:
        with warnings.catch_warnings(), safe_globals([*_HARMLESS]):
            warnings.simplefilter("ignore")  # about TorchScript archives, which end in an error all the same
            foreign = _foreign_names(path) if start.startswith(_ZIP_START) else []
            if not (foreign and trust):
                with safe_globals([(type(Foreign.__name__, (Foreign,), {"class_name": n}), n) for n in foreign]):
                    return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            raise needs_trust(path, foreign or _named_in(error)) from error
    except BROKEN_FILE as error:
        raise needs_trust(path, foreign) if foreign else _broken(path, error) from error
    logger.warning("%s is unpickled, as you allowed: it may run any code", path)
    with current_folder_importable():
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except (Exception, SystemExit) as error:  # the file's own code: it may raise anything
            raise ModelLoadError(f"unpickling {path} failed: {one_line(error)}") from error


def needs_trust(path: Path, class_names: list[str]) -> ModelLoadError:
    """The error for a file in which nothing but its own objects could be the model."""
    named = ", ".join(sorted(class_names)[:_MOST_NAMED])
    more = f" and {len(class_names) - _MOST_NAMED} more" if len(class_names) > _MOST_NAMED else ""
    return ModelLoadError(
        f"{path} is a pickle of more than tensors{f' ({named}{more})' if named else ''}, and unpickling it can run any "
        "code: pass `trust_pickle=True` if you trust the file, or save the model with torch.export.save or its "
        "state_dict()"
    )


def _foreign_names(path: Path) -> list[str]:
    """Classes and functions in an archive that nothing here stands for."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, *BROKEN_FILE):  # said when it is read
        return []


def _named_in(error: pickle.UnpicklingError) -> list[str]:
    named = re.search(r"(?:GLOBAL|Unsupported class|class) ([\w.]+)", str(error))
    return [named[1]] if named else []


def _broken(path: Path, error: Exception) -> ModelLoadError:
    if "TorchScript" in str(error):
        return ModelLoadError(
            f"{path} is a TorchScript archive: save the model that it was made of with torch.export.save; or write the "
            "archive as ONNX with torch's older exporter, torch.onnx.export(torch.jit.load(path), inputs, "
            '"model.onnx", dynamo=False)'
        )
    return ModelLoadError(f"{path} is broken or cut short: {one_line(error)}")


class _Dtype:
    """NumPy's description of a number: its kind and size ("f8"), and the order of its bytes."""

    def __init__(self, code: Any, *flags: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = "".join(str(part) for part in state[1:2] if part in ("<", ">"))


def _scalar(dtype: Any, content: Any = b"") -> Any:
    """One number, as NumPy pickles it; what is none stays unread."""
    if not isinstance(dtype, _Dtype) or not re.fullmatch(r"[fiucb]\d{1,2}", dtype.code):
        return Foreign()
    held = content if isinstance(content, bytes) else str(content).encode("latin1")
    return np.frombuffer(held, np.dtype(f"{dtype.order}{dtype.code}"), count=1)[0].item()


def _no_dict(*arguments: Any) -> dict[Any, Any]:
    return {}


def _no_list(*arguments: Any) -> list[Any]:
    return []


#: Name in a file -> what is called in its place. Their content follows apart, and is read like that of any other.
_HARMLESS: tuple[tuple[Callable[..., Any], str], ...] = (
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_no_dict, "collections.defaultdict"),
    (_no_list, "collections.deque"),
)
