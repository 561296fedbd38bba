"""How many architectures GraphPrune handles, exactly, and how fast: torchvision, timm, and beside torch-pruning.

    python benchmarks/coverage/run.py torchvision
    python benchmarks/coverage/run.py timm --resume
    python benchmarks/coverage/run.py peers --repeats 3
    python benchmarks/coverage/run.py branches
    python benchmarks/coverage/run.py report

Each model runs in a process of its own with a time limit, forked from one that has imported the libraries. A run that
was stopped goes on with `--resume`.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import catalog  # noqa: E402
import child  # noqa: E402
from process import Row, run_child  # noqa: E402
from results import RESULTS, Results, revision  # noqa: E402
from summary import write_readme  # noqa: E402

#: Models up to this many parameters are timed several times.
SMALL = 30e6


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("torchvision", "timm", "peers"):
        command = commands.add_parser(name)
        command.add_argument("models", nargs="*", metavar="MODEL", help="names or patterns (default: all)")
        command.add_argument("--resume", action="store_true", help="keep finished models of an earlier run")
        command.add_argument("--retry", action="store_true", help="with --resume: measure again what did not succeed")
        command.add_argument("--limit", type=float, default=900, help="seconds for one process (default: 900)")
        command.add_argument("--memory", type=float, default=24, help="GB of address space for one process")
        command.add_argument("--max-parameters", type=float, default=150e6, help="larger models are left out")
        command.add_argument("--ratio", type=float, default=0.5, help="share of the exact groups of each set")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--results", type=Path, default=RESULTS, help="folder (default: beside this script)")
        if name == "peers":
            command.add_argument("--suite", choices=("torchvision", "timm", "all"), default="all")
            command.add_argument(
                "--repeats", type=int, default=3, help=f"for models up to {SMALL / 1e6:g} M parameters"
            )
    branches = commands.add_parser("branches", help="whole inner branches of ResNet56 removed")
    branches.add_argument("--seed", type=int, default=0)
    branches.add_argument("--results", type=Path, default=RESULTS)
    report = commands.add_parser("report", help="write README.md from the results")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--output", type=Path, default=HERE / "README.md")
    return parser.parse_args()


def main() -> int:
    """Run a command."""
    arguments = parse()
    if arguments.command == "report":
        write_readme(arguments.results, arguments.output)
        return 0
    if arguments.command == "branches":
        return measure_branches(arguments)
    import_libraries(arguments.command)
    results = Results(arguments.command, arguments.results, resume=arguments.resume)
    about = {
        "command": command_line(),
        "ratio": arguments.ratio,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "limit_seconds": arguments.limit,
        "max_parameters": arguments.max_parameters,
    }
    measure = peers if arguments.command == "peers" else coverage
    for suite, model in selected(arguments):
        known = results.rows.get(model)
        if known is not None and not (arguments.retry and not succeeded(known)):
            continue
        row = {**measure(suite, model, arguments), "family": catalog.family(suite, model), "revision": revision()}
        results.add(row)
        results.write(about)
        print(line(row), flush=True)
    results.write(about)
    return 0


def measure_branches(arguments: argparse.Namespace) -> int:
    """The network whose blocks are removed."""
    import branches

    results = Results("branches", arguments.results)
    for row in branches.measure(arguments):
        results.add({**row, "revision": revision()})
        print(row)
    results.write({"command": command_line(), "seed": arguments.seed})
    return 0


def import_libraries(command: str) -> None:
    """Import, once for all models, what a child needs; capturing something imports the rest of torch.export."""
    import torch

    torch.set_num_threads(1)  # a pool of threads would not outlive a fork
    if command == "peers":
        import peers  # noqa: F401  # sets what timm reads when it is imported
    else:
        import timm  # noqa: F401
    from measure import warm_up

    warm_up()


def selected(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Suites and models that the command line asks for."""
    suites = (arguments.command,) if arguments.command != "peers" else ("torchvision", "timm")
    if getattr(arguments, "suite", "all") != "all":
        suites = (arguments.suite,)
    seen = set()
    for suite in suites:
        for model in catalog.names(suite):
            wanted = not arguments.models or any(fnmatchcase(model, pattern) for pattern in arguments.models)
            if wanted and model not in seen:  # resnet18 and inception_v3 are in both suites
                seen.add(model)
                yield suite, model


def common(arguments: argparse.Namespace) -> list[str]:
    """What every child is told."""
    return [
        *("--ratio", str(arguments.ratio), "--seed", str(arguments.seed), "--memory", str(arguments.memory)),
        *("--max-parameters", str(arguments.max_parameters)),
    ]


def coverage(suite: str, model: str, arguments: argparse.Namespace) -> Row:
    """One model through GraphPrune."""
    return run_child(["coverage", suite, model, *common(arguments)], arguments.limit, arguments.threads, child.main)


def peers(suite: str, model: str, arguments: argparse.Namespace) -> Row:
    """One model through both tools: each alone, then, where both work, in turns."""
    options = common(arguments)
    row: Row = {"suite": suite, "model": model}
    for tool in ("ours", "theirs"):
        row[tool] = run_child([tool, suite, model, *options], arguments.limit, arguments.threads, child.main)
        if row[tool]["status"] == "too big":
            return {**row[tool], "status": "too big"}
    row["parameters"] = row["ours"].get("parameters", row["theirs"].get("parameters"))
    row["status"] = "+".join(tool for tool in ("ours", "theirs") if row[tool]["status"] == "works") or "none"
    if row["status"] == "ours+theirs":
        repeats = arguments.repeats if row["parameters"] <= SMALL else 1
        limit = arguments.limit * (1 + repeats)
        both = ["both", suite, model, *options, "--repeats", str(repeats)]
        row["times"] = run_child(both, limit, arguments.threads, child.main)
    return row


def succeeded(row: Row) -> bool:
    """The model was measured and nothing is wrong with our side."""
    return str(row["status"]).startswith(("exact", "too big", "ours"))


def command_line() -> str:
    """The command as somebody else would type it: without the folder that results go to."""
    words = sys.argv[1:]
    if "--results" in words:
        at = words.index("--results")
        del words[at : at + 2]
    return f"python benchmarks/coverage/{os.path.basename(sys.argv[0])} {' '.join(words)}"


def line(row: Row) -> str:
    """One line of progress."""
    parts = [f"{row['suite']:12s}{row['model']:36s}{row['status']:16s}"]
    if "ours" in row:
        parts += [f"{tool} {row[tool]['status']} {row[tool]['wall_seconds']} s" for tool in ("ours", "theirs")]
        return "  ".join(parts)
    parts.append(" ".join(f"{name} {seconds:.1f}" for name, seconds in row.get("seconds", {}).items()))
    if "difference" in row:
        parts.append(f"difference {row['difference']:.1e} removed {row['parameters_removed']:.0%} {row['kind']}")
    if "error" in row:
        parts.append(f"in {row['stage']}: {row['error']['type']} {row['error']['message'][:160]}")
    return "  ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
