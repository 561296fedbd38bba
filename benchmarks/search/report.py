"""README.md of this folder, written by `python benchmarks/search/report.py` from results/*.json alone."""

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from page import Row, write_page  # noqa: E402

_HEAD = """# Policies and criteria

Written by `python benchmarks/search/report.py` from the files in `results/`; do not edit by hand.

Half of the multiply-accumulates are removed in one shot; BatchNorm statistics are re-estimated on 500 images of
`train/`, and nothing is trained unless it is said. Agreement with the dense network and accuracy are those on all 5,000
images of `val/`, on which nothing was decided. Networks and images are those of [cifar10](../cifar10/README.md).
"""
_POLICIES = """## Policies

`python benchmarks/search/run.py policies`. Which channels go is decided by `taylor` everywhere. *Equal shares* and
*threshold* do not search; a search tries so many allocations on 512 images of `train/` and keeps the best. Mean over
the seeds, and in brackets each of them. Minutes are those of a machine that did other work besides; a search that was
stopped for a while has none.
"""
_CRITERIA = """## Criteria

`python benchmarks/search/run.py criteria`. *Threshold*: the criterion also says how many channels go from where, by
score over what is saved; *equal shares*: every layer loses the same share, so that only the choice of channels differs.
"""
_TRAINED = """## Criteria after the same training

`python benchmarks/search/run.py trained`. The criterion says once which channels go and how many from where
(threshold); then the network learns from its dense self, without labels, on 10,000 images of `train/`.
"""
_SIGMA = """## The 3σ pass before any training

`python benchmarks/search/run.py sigma --networks vgg16_bn_linear`. A weight of a linear layer stays if it is at least k
standard deviations from the mean of its layer. *Of a normal layer*: what would stay if the weights were normally
distributed. *Dead neurons*: those that nothing reaches, or that reach nothing.
"""
_SECONDS = """## How long a search takes

`python benchmarks/search/run.py seconds`.
"""
_METHOD = """## Policy, 3σ and label-free training together

`python benchmarks/cifar10/run.py NAME ...`; command, log and course of each run are in
[cifar10/RESULTS.md](../cifar10/RESULTS.md). *Combined*: DDPG for the convolutions, 3σ for the linear layers of a
VGG16-BN (512-4096-4096-10), then the training on the allocation that was found. The others are its halves alone, and
ResNet56 with a searched allocation. Parameters are those of the ONNX file; of a matrix that is stored sparse, those
that are stored. On `val/`, on which nothing was decided; published: Xu, Li, Yuan 2023, who retrain with labels on the
lossless images.
"""
#: Experiment -> what it is called, and what was published for it: parameters removed, change of accuracy in points.
_PUBLISHED = {
    "vgg16-combined": ("combined", "-83.33 % at -1.55"),
    "vgg16-search": ("search alone", "-28.08 % at -0.75"),
    "vgg16-sigma": ("3σ alone", "-99.05 % at -6.11"),
    "resnet56-search": ("search alone", "-70.1 % at -1.98"),
}
_NAMES = {"uniform": "equal shares", "bee-colony": "bee colony", "ddpg": "DDPG"}
_ORDER = ("ddpg", "bee-colony", "random", "uniform")


def main() -> None:
    """Write the README."""
    sections = (
        ("policies", _POLICIES, policies),
        ("criteria", _CRITERIA, criteria),
        ("trained", _TRAINED, trained),
        ("sigma", _SIGMA, sigma),
        ("seconds", _SECONDS, seconds),
    )
    found = method(sorted((HERE.parent / "cifar10" / "results").glob("*/result.json")))
    write_page(HERE, _HEAD, sections, machine, [_METHOD, found] if found else [])


def machine(facts: Mapping[str, Any]) -> str:
    """Where it was measured."""
    return f"{facts['cpu']} ({facts['instruction_set']}), {facts['physical_cores']} cores."


def policies(rows: Sequence[Row]) -> str:
    """A line for each network, number of evaluations and policy; and whether the order is the expected one."""
    lines = [
        "| network | policy | evaluations | agreement | accuracy | MACs left | on the images of the search | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for network in unique(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        for policy, number in unique((row["policy"], row["evaluations"]) for row in own):
            found = [row for row in own if (row["policy"], row["evaluations"]) == (policy, number)]
            searched = [row["best"][-1] for row in found if number]
            cells = [
                *(network, _NAMES.get(policy, policy), str(number or "")),
                *(spread([row["agreement"] for row in found]), percent(mean(row["accuracy"] for row in found))),
                percent(mean(row["macs"] for row in found)),
                *(
                    (percent(mean(searched)), f"{mean(r['seconds'] for r in found if r['seconds']) / 60:.1f}")
                    if number
                    else ("", "")
                ),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        notes.append(order(network, own))
    return "\n".join([*lines, "", *notes])


def order(network: str, rows: Sequence[Row]) -> str:
    """What is expected of the policies, and what came out; of searches those with most evaluations count."""
    most = max(row["evaluations"] for row in rows)
    rows = [row for row in rows if row["evaluations"] in (0, most)]
    means = {p: mean(row["agreement"] for row in rows if row["policy"] == p) for p in {row["policy"] for row in rows}}
    known = [policy for policy in _ORDER if policy in means]
    found = sorted(known, key=lambda policy: -means[policy])
    said = " > ".join(_NAMES.get(policy, policy) for policy in found)
    if all(means[a] >= means[b] for a, b in pairwise(known)):
        return f"- {network}: {said}, as expected."
    return f"- {network}: {said}. Expected was {' ≥ '.join(_NAMES.get(policy, policy) for policy in known)}."


def criteria(rows: Sequence[Row]) -> str:
    """A line for each network and criterion."""
    lines = [
        "| network | criterion | threshold: agreement | accuracy | equal shares: agreement | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for network in unique(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        for criterion in unique(row["criterion"] for row in own):
            cells = [network, f"`{criterion}`"]
            for policy in ("threshold", "uniform"):
                found = [row for row in own if (row["criterion"], row["policy"]) == (criterion, policy)]
                cells += (
                    [spread([row["agreement"] for row in found]), percent(mean(row["accuracy"] for row in found))]
                    if found
                    else ["", ""]
                )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def trained(rows: Sequence[Row]) -> str:
    """A line for each network and criterion."""
    lines = ["| network | criterion | steps | agreement | accuracy |", "|---|---|---|---|---|"]
    for network, epochs in unique((row["network"], row["epochs"]) for row in rows):
        own = [row for row in rows if (row["network"], row["epochs"]) == (network, epochs)]
        for criterion in unique(row["criterion"] for row in own):
            found = [row for row in own if row["criterion"] == criterion]
            cells = [network, f"`{criterion}`", str(found[0]["steps"]), spread([row["agreement"] for row in found])]
            lines.append(f"| {' | '.join(cells)} | {percent(mean(row['accuracy'] for row in found))} |")
    return "\n".join(lines)


def sigma(rows: Sequence[Row]) -> str:
    """A line for each k."""
    lines = [
        "| network | k | weights left | of a normal layer | dead neurons | agreement | accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = [f"{100 * row[name]:.2f} %" for name in ("left", "left_of_normal")]
        cells = [row["network"], f"{row['sigma']:g}", *shares, str(row["dead"])]
        lines.append(f"| {' | '.join([*cells, percent(row['agreement']), percent(row['accuracy'])])} |")
    return "\n".join(lines)


def seconds(rows: Sequence[Row]) -> str:
    """A line for each search that was timed."""
    lines = ["| network | policy | evaluations | threads | minutes | agreement |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row["network"], _NAMES.get(row["policy"], row["policy"]), row["evaluations"], row["threads"]]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['seconds'] / 60:.1f} | {percent(row['agreement'])} |")
    return "\n".join(lines)


def method(paths: Sequence[Path]) -> str:
    """A line for each run of the whole method, or of a part of it; nothing if there is none."""
    runs = [json.loads(path.read_text()) for path in paths]
    lines = []
    for name, (what, published) in _PUBLISHED.items():
        for run in (run for run in runs if run["record"]["experiment"] == name):
            dense, slim = run["models"][:2]
            config = run["config"]
            cells = [
                f"{name.split('-')[0]}, {what}",
                f"{config['epochs']:g}",
                *(f"{100 * (slim[cost] / dense[cost] - 1):.1f} %" for cost in ("params", "macs")),
                f"{dense['size_bytes'] / 1e6:.1f} to {slim['size_bytes'] / 1e6:.1f} MB",
                f"{slim['speedup']:.2f}x",
                *(f"{100 * slim[share]:.2f} %" for share in ("agreement", "accuracy")),
                f"{100 * (slim['accuracy'] - dense['accuracy']):+.2f}",
                published,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return ""
    return "\n".join(
        [
            "| run | epochs | parameters | MACs | file | speed-up | agreement | accuracy | change | published |",
            "|---" * 10 + "|",
            *lines,
        ]
    )


def unique(values: Any) -> list[Any]:
    """In the order of their first appearance."""
    return list(dict.fromkeys(values))


def percent(share: float) -> str:
    """As in 93.6 %."""
    return f"{100 * share:.1f} %"


def spread(values: Sequence[float]) -> str:
    """The mean, and each value where there are several."""
    single = ", ".join(f"{100 * value:.1f}" for value in values)
    return percent(mean(values)) + (f" ({single})" if len(set(values)) > 1 else "")


if __name__ == "__main__":
    main()
