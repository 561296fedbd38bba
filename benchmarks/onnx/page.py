"""README.md, made of the result files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_CHAOTIC = """\
With the torch path's plan `efficientnet_v2_s` by TorchScript is refused: most weights lost their names, the plan cuts
only a part, and the random network that is left is chaotic (noise of 1e-6 on the input changes the masked file's own
output by 0.75 of its scale).
"""


def page(results: Path) -> str:
    """The whole page; a part whose results are not there is left out."""
    parts = (("exports", _exports), ("files", _files), ("fuzz", _fuzz), ("big", _big))
    lines = ["# Any ONNX file through `graphprune slim`", ""]
    for name, write in parts:
        path = results / f"{name}.json"
        if path.exists():
            lines.extend(write(json.loads(path.read_text())))
    return "\n".join(lines).rstrip() + "\n"


def _about(document: Row, name: str) -> str:
    machine = document["machine"].get("cpu", document["machine"].get("processor", "")) or "machine in the file"
    return f"`{document['command']}`, revision {document['revision']}, {machine}; all rows in `results/{name}.json`.\n"


def _found(rows: Sequence[Row]) -> Iterator[str]:
    dead = [row for row in rows if row.get("dead")]
    errors = [row["dead"][key] for row in dead for key in ("error_all", "error_disabled") if key in row["dead"]]
    found = sum(bool(row.get("found")) for row in dead)
    yield f"- nothing dead: outputs unchanged (1e-4) in {sum('unchanged' in row for row in rows)} of {len(rows)} files"
    yield f"- half of the channels of each group zeroed: found without a plan in {found} of the {len(dead)} files that"
    yield f"  have groups; largest relative error {max(errors, default=0):.1e}, onnxruntime's optimization on or off"


def _exports(document: Row) -> Iterator[str]:
    rows = document["rows"]
    same = [row["torch"] for row in rows if "named" in row.get("torch", {})]
    equal, named = sum(torch["same"] for torch in same), sum(torch["named"] for torch in same)
    full = sum(torch.get("lost", 1) == 0 for torch in same)
    yield "## Exports of public architectures\n"
    yield _about(document, "exports")
    yield from _found(rows)
    yield f"- plan of the torch path, in {len(same)} files: {equal} of {named} tensors that have their name have the"
    yield f"  sizes that the torch path gives; {full} files have all tensors that the plan cuts. TorchScript's exporter"
    yield "  renames weights that it folds or transposes: of those files, what still has its name is compared, and the"
    yield "  number of tensors that the plan cuts and the file does not have is noted as lost\n"
    if any(row["model"].endswith("torchvision/efficientnet_v2_s.onnx") and row["status"] == "error" for row in rows):
        yield _CHAOTIC
    yield "| file | opset | nodes | groups | found | error | MACs left | torch plan | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield "| " + " | ".join(map(str, [*_cells(row), _torch(row), _problem(row)])) + " |"
    yield ""


def _files(document: Row) -> Iterator[str]:
    rows = [row for row in document["rows"] if row["status"] != "error"]
    refused = [row for row in document["rows"] if row["status"] == "error"]
    yield "## Files that other tools made\n"
    yield _about(document, "files")
    yield from _found(rows)
    yield f"- refused with one line: {len(refused)}, listed below\n"
    yield "| file | opset | nodes | groups | found | error | MACs left | channels stay before |"
    yield "|---|---|---|---|---|---|---|---|"
    quiet = 0
    for row in rows:
        if not row["groups"]:
            quiet += 1
            continue
        unknown = ", ".join(sorted({name.removesuffix(" of unknown sizes") for name in row["unknown"]})[:3])
        yield "| " + " | ".join(map(str, [*_cells(row), unknown])) + " |"
    yield f"\nAnd {quiet} files without channels that could go (test data of single operators, mostly).\n"
    yield "| refused | why |"
    yield "|---|---|"
    for row in refused:
        yield f"| {row['model']} | {row['error']['message'][:200]} |"
    yield ""


def _fuzz(document: Row) -> Iterator[str]:
    graphs, damaged = document["graphs"], document["damaged"]
    yield "## Random graphs and damaged files\n"
    yield _about(document, "fuzz")
    yield f"- {graphs.get('fine', 0)} random graphs (opsets {min(graphs['opsets'], key=int)} to"
    yield f"  {max(graphs['opsets'], key=int)}, {len(graphs['operators'])} kinds of operators) as promised;"
    yield f"  {graphs['with channels to remove']} had channels to remove, {graphs['channel groups removed']} of"
    yield f"  {graphs['channel groups']} groups were zeroed and found"
    yield f"- {sum(damaged.get(key, 0) for key in ('refused', 'slimmed'))} damaged files: {damaged.get('refused', 0)}"
    yield f"  refused in one line, {damaged.get('slimmed', 0)} still ran in onnxruntime and gave the same when slimmed"
    yield f"- {len(document['failures'])} failures\n"


def _big(document: Row) -> Iterator[str]:
    yield "## Large files: time and memory\n"
    yield _about(document, "big")
    yield "| file | size | onnxruntime loads it | slim | ratio | proof | whole processes | memory | without imports |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in document["rows"]:
        found = row["summary"]
        seconds = [f"{found[key]:.2f} s" for key in ("load", "slim")]
        ratios = [f"**{found['ratio']:.2f}x**", f"{found['proof']:.2f} s", f"{found['wall']:.2f}x"]
        memory = [f"**{found['memory']:.2f}x**", f"{found['own']:.2f}x (onnxruntime {found['load_memory']:.2f}x)"]
        yield "| " + " | ".join([row["about"], f"{row['bytes'] / 1e6:.0f} MB", *seconds, *ratios, *memory]) + " |"
    yield f"\n{_BIG}"


_BIG = """\
*onnxruntime loads it*: makes a session with all its optimizations. *slim*: the whole command with its proof, from
arguments to printed table; *proof* is its share. Both on one processor, without the start of the interpreter and
imports, which *whole processes* includes. Times are medians, ratios medians of pairs of processes that ran one after
the other. *memory*: the largest peak of resident memory of a process that slims, everything included (interpreter,
libraries, pages of mapped files), relative to the file with its external data. Goals: 3x the time and 3x the memory at
100 MB, 2x the memory at 2.5 GB. The proof runs the given file and the slim one, unoptimized, on batches of one and
two; where nothing was changed, the written file is run once."""


def _cells(row: Row) -> list[Any]:
    gone = row.get("dead", {})
    errors = [gone[key] for key in ("error_all", "error_disabled") if key in gone]
    left = f"{gone['macs_after'] / gone['macs_before']:.2f}" if gone.get("macs_before") else ""
    found = {True: "yes", False: "no"}.get(row.get("found"), "")
    error = f"{max(errors):.1e}" if errors else ""
    return [
        row["model"].removeprefix("files/"),
        row.get("opset"),
        row.get("nodes"),
        row.get("groups"),
        found,
        error,
        left,
    ]


def _torch(row: Row) -> str:
    torch = row.get("torch", {})
    if "named" not in torch:
        return str(torch.get("error", ""))[:60]
    lost = f", {torch['lost']} lost" if torch.get("lost") else ""
    return f"{torch['same']} of {torch['named']}{lost}"


def _problem(row: Row) -> str:
    if row["status"] == "exact":
        return ""
    return f"{row['status']}: {row.get('error', {}).get('message', '')[:160]}"
