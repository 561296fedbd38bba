"""Settings in messages: the library names them as Python does, the command line as its user gave them.

    pass `trust_pickle=True`             ->  pass --trust-pickle
    give `output_loss="mse"`             ->  give --output-loss mse
    raise `epochs`, or lower `lr`        ->  raise --epochs, or lower --lr

Only names that are options of the command at hand are meant; anything else stays as it is.
"""

import re
import shlex
from collections.abc import Sequence

import click

__all__ = ["as_options"]

_SETTING = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


def as_options(text: str, parameters: Sequence[click.Parameter]) -> str:
    """Return a message with the settings in it spelled as options of a command."""
    options = {option.name: option for option in parameters if isinstance(option, click.Option)}

    def spelled(found: re.Match[str]) -> str:
        option = options.get(found[1])
        return found[0] if option is None else _spelled(option, (found[2] or "").strip("\"'"))

    return _SETTING.sub(spelled, text)


def _spelled(option: click.Option, value: str) -> str:
    names = option.secondary_opts if option.is_flag and value == "False" else option.opts
    flag = max(names or option.opts, key=len)
    return flag if option.is_flag or not value else f"{flag} {shlex.quote(value)}"
