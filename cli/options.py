"""Options that several commands have in common: the same names, meaning and defaults everywhere.

A command takes what it needs:

    @click.command()
    @together(*data_options())
    @json_option
    def command(data, mean, std, image_size, as_json): ...
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from graphprune.cli.spelling import as_options

__all__ = [
    "Counts",
    "Decorator",
    "Numbers",
    "RunState",
    "arch_options",
    "data_options",
    "force_option",
    "inputs_option",
    "json_option",
    "output_loss_option",
    "provider_option",
    "quantize_options",
    "run_options",
    "seed_option",
    "shape_option",
    "threads_option",
    "together",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

CPU = "CPUExecutionProvider"


_HANDLER = "graphprune command line"


@dataclass
class RunState:
    """What the options that every command takes say of the run.

    Attributes:
        debug: show the traceback of an error, and what libraries log.
        verbose: log more.
        quiet: log warnings and errors alone.
        options: of the command that runs; messages that name one spell it as these do.
    """

    debug: bool = False
    verbose: bool = False
    quiet: bool = False
    options: Sequence[click.Parameter] = ()

    def set_up_log(self) -> None:
        """Send the log to stderr: in color on a terminal, as plain lines into a file or pipe.

        What other libraries log goes nowhere. Some of them (onnxruntime's quantizer) log through the root logger, which
        then gets a handler of its own, and every line here would come twice.
        """
        take_down_log()
        logger = logging.getLogger("graphprune")
        handler = _terminal_handler() if sys.stderr.isatty() else logging.StreamHandler()
        handler.setFormatter((_Message if sys.stderr.isatty() else _LowerCaseLevel)(self))
        handler.set_name(_HANDLER)
        handler.setLevel(logging.DEBUG if self.verbose else logging.WARNING if self.quiet else logging.INFO)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        if not self.debug:
            silence = logging.NullHandler()
            silence.set_name(_HANDLER)
            logging.getLogger().addHandler(silence)
            # Of libraries about each other; a user can do nothing about them.
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)


def take_down_log() -> None:
    """Stop sending the log to stderr: who called `main` from Python has a log of their own."""
    logger, root = logging.getLogger("graphprune"), logging.getLogger()
    for owner in (logger, root):
        for handler in [handler for handler in owner.handlers if handler.get_name() == _HANDLER]:
            owner.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def _terminal_handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    return RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False)


class _Message(logging.Formatter):
    """The message alone, with settings spelled as the options of the command."""

    def __init__(self, state: RunState) -> None:
        super().__init__()
        self._state = state

    def format(self, record: logging.LogRecord) -> str:
        return as_options(record.getMessage(), self._state.options)


class _LowerCaseLevel(_Message):
    """The same behind its level, where that is another than INFO."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def run_options() -> list[click.Option]:
    """Return new options on how to run, which the group and every command take."""
    rules = click.Option(
        ["--rules"],
        multiple=True,
        metavar="MODULE",
        expose_value=False,
        callback=_import_rules,
        help="Rules for operators of your own: package.module, which is imported.",
    )
    switches = [
        click.Option(
            [f"-{name[0]}", f"--{name}"] if name != "debug" else ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help=text,
        )
        for name, text in (
            ("verbose", "Log more."),
            ("quiet", "Log warnings and errors alone."),
            ("debug", "Show the traceback of an error."),
        )
    ]
    return [rules, *switches]


def _import_rules(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    for name in value:
        from graphprune.formats.user_code import import_rules

        import_rules(name)


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and parameter.name is not None:
        state = ctx.find_root().ensure_object(RunState)
        setattr(state, parameter.name, True)
        state.set_up_log()


class FloatList(click.ParamType):
    """Numbers separated by commas: 0.485,0.456,0.406."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).replace(",", " ").split())
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 0.485,0.456,0.406", param, ctx)


class Counts(click.ParamType):
    """Whole numbers of at least 1, separated by commas: 1,16."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() and int(part) for part in parts):
            self.fail(f"{value!r} is no number of at least 1, and no list like 1,16", param, ctx)
        return tuple(int(part) for part in parts)


class Numbers(click.ParamType):
    """One number, or several separated by commas: 0.5, or 0.66,0.5,0.33."""

    name = "numbers"

    def __init__(self, noun: str, example: str, examples: str) -> None:
        """What one of them is, with an example of one and of several, for who gets it wrong."""
        self._wanted = f"no {noun} like {example}, and no list like {examples}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | tuple[float, ...]:
        """Return the number, or all of several."""
        if isinstance(value, float | tuple):
            return value
        try:
            found = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is {self._wanted}", param, ctx)
        return found[0] if len(found) == 1 else found


class Align(click.ParamType):
    """A number of channels, or auto."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number, or "auto"."""
        if value == "auto" or isinstance(value, int):
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of channels nor auto", param, ctx)
        return int(value)


class ImageSize(click.ParamType):
    """A side of a square, or height x width: 32, 480x640."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """Return the side, or height and width."""
        if isinstance(value, int | tuple):
            return value
        sizes = _sizes(str(value))
        if sizes is None or len(sizes) > 2:
            self.fail(f"{value!r} is neither a side like 224 nor height x width like 480x640", param, ctx)
        return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


class InputShape(click.ParamType):
    """The shape of an input: 1x3x224x224, or with the input's name before it, image:1x3x224x224.

    A question mark as its first size leaves the batch open: ?x3x224x224; it becomes 0.
    """

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Return the input's name ("" when none is given) and the shape."""
        if isinstance(value, tuple):
            return value
        name, _, text = str(value).rpartition(":")
        is_open = text.startswith("?")
        sizes = _sizes(f"1{text[1:]}" if is_open else text)
        if sizes is None:
            self.fail(f"{value!r} is not a shape like 1x3x224x224, ?x3x224x224 or input:1x3x224x224", param, ctx)
        return name, (0, *sizes[1:]) if is_open else sizes


def _sizes(text: str) -> tuple[int, ...] | None:
    parts = text.lower().replace(",", "x").split("x")
    sizes = tuple(int(part) for part in parts if part.strip().isdecimal())
    return sizes if len(sizes) == len(parts) and all(sizes) else None


def together(*decorators: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options, or sections of them, as one decorator; they stand in the help in this order."""
    # The decorator nearest to the function comes last in the help.
    return lambda command: reduce(lambda wrapped, decorate: decorate(wrapped), reversed(decorators), command)


def data_options(*, required: bool = False) -> tuple[Decorator, ...]:
    """Images and their preprocessing: `data`, `mean`, `std`, `image_size`."""
    return (
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            required=required,
            help="Images: a folder, a zip (images.zip::train for a folder in it), or a .npy or .npz array. "
            "For several inputs: an .npz file with an array for each, by name.",
        ),
        click.option("--mean", type=FloatList(), help="Mean of each channel, of pixels in 0..1. Default: ImageNet's."),
        click.option("--std", type=FloatList(), help="Standard deviation of each channel. Default: ImageNet's."),
        click.option(
            "--image-size",
            type=ImageSize(),
            help="Side, or height x width, that images are brought to. Default: what the model takes, or their own.",
        ),
    )


output_loss_option = click.option(
    "--output-loss",
    type=click.Choice(["auto", "kl", "mse"]),
    default="auto",
    show_default=True,
    help="What the outputs are: kl for class logits, mse for numbers; auto: logits if it is one of batch x classes.",
)
arch_options: tuple[Decorator, ...] = (
    click.option(
        "--arch",
        metavar="MODULE:FACTORY",
        help="What builds the network of a state dict, as in graphprune.models:resnet56.",
    ),
    click.option(
        "--entry",
        metavar="NAME",
        help="Which of the weights in a checkpoint: state_dict_ema. Default: those that fit, averaged ones first.",
    ),
    click.option("--trust-pickle", is_flag=True, help="Load a pickled module, which can run any code it holds."),
)
quantize_options: tuple[Decorator, ...] = (
    click.option(
        "--calibration",
        type=click.Choice(["auto", "minmax", "percentile", "entropy"]),
        default="auto",
        show_default=True,
        help="Range of an activation; auto: minmax, and percentile where that misses the agreement.",
    ),
    click.option(
        "--calibration-images",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Images for the ranges.",
    ),
    click.option(
        "--search-images",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Further images, to compare int8 with float32 on.",
    ),
    click.option(
        "--min-agreement",
        type=click.FloatRange(0, 1),
        default=0.99,
        show_default=True,
        help="Share of images on which int8 must answer as float32 does.",
    ),
    click.option(
        "--max-float-layers",
        type=click.FloatRange(0, 1),
        default=0.5,
        show_default=True,
        help="Share of the layers that may be left in float32 for it.",
    ),
    output_loss_option,
    click.option(
        "--reduce-range/--no-reduce-range",
        default=None,
        help="7-bit weights. Default: where the int8 kernels of this machine saturate (no VNNI).",
    ),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
force_option = click.option("--force", is_flag=True, help="Replace what exists under the output's name.")
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random."
)
inputs_option = click.option(
    "--inputs", type=click.Path(path_type=Path), help="Arrays by input name (.npz), or of the only input (.npy)."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads that onnxruntime uses."
)
provider_option = click.option("--provider", default=CPU, show_default=True, help="Execution provider of onnxruntime.")


def _by_name(
    ctx: click.Context, parameter: click.Parameter, value: Sequence[tuple[str, tuple[int, ...]]]
) -> dict[str, tuple[int, ...]] | None:
    names = [name for name, _ in value]
    if len(names) > 1 and "" in names:
        raise click.BadParameter(
            "several shapes need the names of their inputs, as in image:1x3x224x224", ctx, parameter
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise click.BadParameter(f"two shapes are given for the input {twice!r}", ctx, parameter)
    return dict(value) or None


shape_option = click.option(
    "--shape",
    "shapes",
    type=InputShape(),
    multiple=True,
    callback=_by_name,
    metavar="[INPUT:]1x3x224x224",
    help="Shape of an input whose size the file leaves open; ?x3x224x224 leaves the batch open. Can be repeated.",
)
