"""Torch's export kept from talking: what it prints of a model that it cannot take goes on for pages."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

__all__ = ["kept_quiet"]

logger = logging.getLogger("graphprune")

_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript", "onnx_ir")
# Has a level of its own, so that of torch.fx does not count for it.
_OWN_LEVEL = ("torch.fx.experimental.symbolic_shapes",)


@contextmanager
def kept_quiet() -> Iterator[None]:
    """Keep prints, warnings and log lines of torch and its exporter off the terminal; stdout belongs to results.

    What was printed is a record of level DEBUG. Errors are raised as ever.
    """
    levels = {name: logging.getLogger(name).level for name in (*_LOGGERS, *_OWN_LEVEL)}
    printed = io.StringIO()
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if printed.getvalue().strip():
            logger.debug("torch printed: %s", printed.getvalue().strip())
