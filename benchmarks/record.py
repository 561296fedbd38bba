"""Keep the result of a `graphprune compress` run: metrics and log, without the folders of the machine it ran on.

python benchmarks/record.py OUT benchmarks/cifar10/results/NAME
"""

import re
import sys
from pathlib import Path

_FOLDERS = re.compile(r"(?<![\w.])(?:/[\w.+-]+)+/(?=[\w.+-])")


def without_folders(text: str) -> str:
    """The text with the names of files alone, without the folders that they lie in."""
    return _FOLDERS.sub("", text)


def main(run: Path, target: Path) -> None:
    """Copy `metrics.json` and `compress.log` of a run."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "compress.log"):
        (target / name).write_text(without_folders((run / name).read_text()))
        print(f"wrote {target / name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
