"""int8 beside float32: which integers suit the kernels of a machine, what they cost and what they bring.

    python benchmarks/latency/int8.py make --folder WORK --file resnet56=R.onnx --data train/ --val val/
    python benchmarks/latency/int8.py measure --folder WORK       # results/int8.json and INT8.md; on an idle machine

Ranges of activations come from images of --data; agreement and accuracy are those of --val, on which nothing was
chosen.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from graphprune.data import load_images  # noqa: E402
from graphprune.formats.files import atomic_write_text  # noqa: E402
from graphprune.int8.preparation import prepare  # noqa: E402
from graphprune.int8.quantizer import calibrate  # noqa: E402
from graphprune.int8.scheme import Scheme, saturates, scheme_of_machine  # noqa: E402
from graphprune.runtime.benchmark import benchmark  # noqa: E402
from graphprune.runtime.machine import machine_facts  # noqa: E402
from graphprune.verification.accuracy import measure_quality  # noqa: E402

SCHEMES = {
    "u8s8, 8 bits": Scheme("uint8", False),
    "u8s8, 7 bits": Scheme("uint8", True),
    "s8s8": Scheme("int8", False),
    "u8s8, 7 bits, percentile": Scheme("uint8", True, "percentile"),
    "u8s8, 7 bits, entropy": Scheme("uint8", True, "entropy"),
}
TIMED = ("u8s8, 8 bits", "u8s8, 7 bits", "s8s8")  # the rest are other numbers in the same kernels
CONDITIONS = ((1, 1), (16, 1), (1, 2))  # batch, threads
CALIBRATION_IMAGES = 256


def make(arguments: argparse.Namespace) -> None:
    """Quantize every file with every scheme, and compare the answers."""
    images = load_images(arguments.data, image_size=arguments.image_size, limit=CALIBRATION_IMAGES)
    judged = load_images(arguments.val, image_size=arguments.image_size, limit=arguments.limit)
    kept = arguments.folder / "rows.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else []  # of a run that was stopped
    done = {(row["network"], row["scheme"]) for row in rows}
    for entry in arguments.file:
        name, _, path = entry.partition("=")
        model = prepare(Path(path))
        source = arguments.folder / f"{name}.float32.onnx"
        arguments.folder.mkdir(parents=True, exist_ok=True)
        source.write_bytes(Path(path).read_bytes())
        for scheme_name, scheme in SCHEMES.items():
            if (name, scheme_name) in done:
                continue
            target = arguments.folder / f"{name}.{list(SCHEMES).index(scheme_name)}.onnx"
            target.write_bytes(calibrate(model, images.batches(32), scheme).quantized())
            quality = measure_quality(source, target, judged)
            row = {"network": name, "scheme": scheme_name, **quality.to_dict(), "bytes": target.stat().st_size}
            rows.append({**row, "float_bytes": source.stat().st_size, "source": judged.name.rpartition("/")[2]})
            facts = {"rows": rows, "saturates": saturates(), "chosen": str(scheme_of_machine())}
            atomic_write_text(kept, json.dumps(facts))
            print(name, scheme_name, f"{quality.agreement:.4f}", flush=True)


def measure(folder: Path, seconds: float) -> None:
    """Time every file against its float one."""
    made = json.loads((folder / "rows.json").read_text())
    networks = list(dict.fromkeys(row["network"] for row in made["rows"]))
    timings = []
    for network in networks:
        files = {"float32": folder / f"{network}.float32.onnx"}
        files |= {name: folder / f"{network}.{list(SCHEMES).index(name)}.onnx" for name in TIMED}
        for batch, threads in CONDITIONS:
            report = benchmark(files, batch=batch, threads=threads, min_seconds=seconds)
            timings.append({"network": network, **report.to_dict()})
        print(network, flush=True)
    command = "python benchmarks/latency/int8.py measure"
    result = {"command": command, "machine": machine_facts().to_dict(), **made, "timings": timings}
    atomic_write_text(HERE / "results" / "int8.json", json.dumps(result, indent=1) + "\n")
    atomic_write_text(HERE / "INT8.md", page(result))


def page(result: dict[str, Any]) -> str:
    """The result as a page."""
    machine = result["machine"]
    has_dot = [flag for flag in machine["features"] if "vnni" in flag or "amx" in flag]
    images = result["rows"][0]["images"]
    lines = [
        "# int8 beside float32",
        "",
        f"`{result['command']}`, {machine['cpu']} ({machine['instruction_set']}, {', '.join(has_dot) or 'no VNNI'}), "
        f"onnxruntime {machine['onnxruntime']};",
        f"made from [results/int8.json](results/int8.json). All layers in int8; {CALIBRATION_IMAGES} images for the "
        "ranges of activations, agreement with the",
        f"float file and accuracy on {images} other images (CIFAR-10). Sums of int8 products saturate here: "
        f"{'yes' if result['saturates'] else 'no'};",
        f"chosen by `graphprune quantize`: {result['chosen']}.",
        "",
        "| network | integers | agreement | accuracy | file size |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        change = 100 * (row["accuracy"]["slim"] - row["accuracy"]["dense"])
        size = 100 * (row["bytes"] / row["float_bytes"] - 1)
        lines.append(
            f"| {row['network']} | {row['scheme']} | {row['agreement']:.2%} | {row['accuracy']['slim']:.2%} "
            f"({change:+.2f} points) | {size:+.0f} % |"
        )
    lines += ["", "Speed-up over the float file, with its 95 % interval:", ""]
    lines += [f"| network | batch | threads | float32 | {' | '.join(TIMED)} |", "|---" * (4 + len(TIMED)) + "|"]
    for timing in result["timings"]:
        models = {model["name"]: model for model in timing["models"]}
        cells = [
            f"{models[name]['speedup']:.2f}x ({models[name]['speedup_interval'][0]:.2f} - "
            f"{models[name]['speedup_interval'][1]:.2f})"
            for name in TIMED
        ]
        head = (
            f"{timing['network']} | {timing['batch']} | {timing['threads']} | {models['float32']['median_ms']:.2f} ms"
        )
        lines.append(f"| {head} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "measure"))
    parser.add_argument("--folder", type=Path, required=True, help="where the files are kept")
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH", help="a float32 ONNX file")
    parser.add_argument("--data", help="images for the ranges of activations")
    parser.add_argument("--val", help="labelled images to compare on")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--limit", type=int, default=2000, help="of the images to compare on")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds for each file")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments)
    else:
        measure(arguments.folder, arguments.seconds)


if __name__ == "__main__":
    main()
