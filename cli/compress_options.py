"""The options of `graphprune compress`, in sections: what everybody needs comes first."""

from pathlib import Path

import click
from cloup import option_group

from graphprune.cli.options import (
    Align,
    Decorator,
    Numbers,
    arch_options,
    data_options,
    force_option,
    json_option,
    output_loss_option,
    provider_option,
    seed_option,
    together,
)
from graphprune.config import CompressConfig

__all__ = ["compress_options"]

_DEFAULT = CompressConfig()
_SHARES = Numbers("share", "0.5", "0.66,0.5,0.33")

_BUDGET = option_group(
    "Budget (several must all hold)",
    click.option(
        "--speedup",
        type=Numbers("number of times", "2", "1.5,2,3"),
        metavar="TIMES[,...]",
        help="How many times faster than before, measured in onnxruntime on this machine: 2.",
    ),
    click.option(
        "--latency-ms",
        type=Numbers("number of milliseconds", "5", "5,2.5"),
        metavar="MS[,...]",
        help="Milliseconds that one run may take, measured likewise.",
    ),
    click.option(
        "--macs",
        type=_SHARES,
        metavar="SHARE[,...]",
        help="Share of the multiply-accumulates that may be left: 0.5. Several, as in 0.66,0.5,0.33, make a family.",
    ),
    click.option("--params", type=_SHARES, metavar="SHARE[,...]", help="Share of the parameters that may be left."),
)

_IMAGES = option_group(
    "Images",
    *data_options(required=True),
    click.option(
        "--eval-data", type=click.Path(path_type=Path), help="More images, to measure the result on and no more."
    ),
    click.option(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="Your own measure of the result: a function of the dense and the slim outputs of a batch, as arrays by "
        "name, that gives a number, more is better. It is imported, and runs.",
    ),
    click.option("--limit", type=click.IntRange(min=2), help="Learn from so many of the images. Default: all."),
    click.option("--channels", type=click.Choice(["1", "3"]), help="Gray or color. Default: what the model takes."),
)

_OUTPUT = option_group(
    "Output",
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        required=True,
        metavar="OUT",
        help="Folder for the results.",
    ),
    click.option(
        "--quantize", type=click.Choice(["int8"]), help="Also write slim-int8.onnx, calibrated on the images."
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in OUT."),
    force_option,
    json_option,
)

_MODEL = option_group(
    "Model",
    *arch_options,
    output_loss_option,
    click.option(
        "--freeze",
        multiple=True,
        metavar="GLOB",
        help="Layers that keep all their channels, and linear ones all their weights: layer1.*. Can be repeated.",
    ),
)

_TRAINING = option_group(
    "Training",
    click.option(
        "--epochs",
        type=float,
        help="Passes over the images; may be a fraction. 0: no training, a minute or so: layers are fitted in closed "
        f"form. Default: {_DEFAULT.epochs:g}.",
    ),
    click.option("--batch-size", type=int, help=f"Images a step. Default: {_DEFAULT.batch_size}."),
    click.option("--lr", type=float, help="Peak learning rate. Default: 0.02; 0.003 in the course reconstructed."),
    click.option(
        "--students",
        "n_students",
        type=click.IntRange(min=1),
        help="Students that learn side by side for one budget; the best on images held out is delivered. Default: 1.",
    ),
    click.option(
        "--students-per-step",
        type=click.IntRange(min=0),
        help="So many of the students, or of the members of a family, learn in each step, in turns. Default: all.",
    ),
    click.option(
        "--sensitivity",
        type=click.Choice(["taylor", "l2", "l1", "bn_scale", "fpgm", "apoz", "entropy", "hrank", "random"]),
        help=f"What tells which channels matter least. Default: {_DEFAULT.sensitivity}.",
    ),
    click.option(
        "--course",
        type=click.Choice(["dynamic", "static", "one-shot", "reconstructed"]),
        help="Channels to go are chosen anew all along, chosen once and faded out, cut at once, or cut at once and the "
        "rest fitted in closed form, which the training begins from and never ends worse than. Default: dynamic.",
    ),
    click.option(
        "--lambda-feature",
        type=float,
        help=f"Weight of the loss on features; 0 leaves it out. Default: {_DEFAULT.lambda_feature:g}.",
    ),
    click.option(
        "--shrink/--no-shrink",
        default=None,
        help="Remove channels during the training, which makes it faster. Default: on.",
    ),
    click.option(
        "--flip/--no-flip", default=None, help="Mirror images at random; not for digits and letters. Default: on."
    ),
    click.option("--crop/--no-crop", default=None, help="Shift images at random. Default: on."),
    click.option(
        "--mix", type=float, help="Share of the training images that are blended with another one. Default: 0."
    ),
    click.option(
        "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), help="Of the training. Default: auto."
    ),
    click.option(
        "--device",
        help="To train on, as torch names it: cpu, cuda, cuda:1. Default: a CUDA device if there is one.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads of the training. Default: all cores."),
    click.option("--checkpoint-steps", type=int, help="Save the run every so many steps. Default: every minute."),
    seed_option,
)

_WIDTHS = option_group(
    "Widths: how many channels go from where",
    click.option(
        "--align",
        type=Align(),
        help="Keep multiples of so many channels in a layer; auto: widths that are quick on this machine, measured, as "
        f"--speedup takes in any case. Default: {_DEFAULT.align}.",
    ),
    click.option(
        "--policy",
        type=click.Choice(["auto", "knapsack", "threshold", "uniform", "ddpg", "bee-colony", "random"]),
        help="How many channels go from where. The last three try allocations out before the training, and keep the "
        "best. Default: auto, the knapsack where latency matters, else the threshold.",
    ),
    click.option(
        "--search-evaluations",
        type=click.IntRange(min=1),
        help=f"How many allocations such a policy tries out. Default: {_DEFAULT.search_evaluations}.",
    ),
    click.option(
        "--search-images",
        type=click.IntRange(min=2),
        help=f"Images that it judges each on. Default: {_DEFAULT.search_images}.",
    ),
    click.option(
        "--recipe",
        type=click.Choice(["dynamic", "combined"]),
        help="combined: a search (--policy, by default ddpg) allocates the convolutions, --sigma prunes the linear "
        "layers, and the training keeps to both. Default: dynamic.",
    ),
    click.option(
        "--sigma",
        type=click.FloatRange(min=0),
        help="Weights of linear layers nearer to their mean than so many standard deviations become zero. Default: "
        "none do; with --recipe combined 3.",
    ),
)

_MEASURING = option_group(
    "Measuring in onnxruntime",
    click.option(
        "--benchmark-seconds",
        type=click.FloatRange(min=0),
        default=2.0,
        show_default=True,
        help="Timed seconds for each file at the end; 0 for none.",
    ),
    click.option(
        "--benchmark-threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads of onnxruntime, at the end and for budgets in latency.",
    ),
    click.option(
        "--benchmark-batch",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Images in one run, likewise.",
    ),
    provider_option,
)

_INT8 = option_group(
    "int8",
    click.option(
        "--min-agreement",
        type=click.FloatRange(0, 1),
        default=0.99,
        show_default=True,
        help="Share of images on which int8 must answer as float32 does; else layers are left in float32.",
    ),
)

compress_options: Decorator = together(_BUDGET, _IMAGES, _OUTPUT, _MODEL, _TRAINING, _WIDTHS, _MEASURING, _INT8)
