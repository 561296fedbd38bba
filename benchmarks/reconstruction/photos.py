r"""Crops of photographs: what a network of ImageNet is fitted to without labels, and others to judge it on.

    apt-get download gnome-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds \
        plasma-workspace-wallpapers ukui-wallpapers
    for package in *.deb; do dpkg-deb -x $package photos; done
    python benchmarks/reconstruction/photos.py photos CROPS

Photographs that look alike (the same one in several sizes) count once. A quarter of them is kept apart: CROPS/judge
holds crops of these, CROPS/fit of the others. The same files give the same crops.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE = 224
_LEAST_SIDE = 600  # of a photograph
_LEAST_BYTES = 60_000  # smaller files are drawings
_KINDS = (".jpg", ".jpeg", ".png", ".webp")
_ALIKE = 6.0  # mean difference of 8 x 8 gray pixels below which two photographs are one


def main() -> None:
    """Write the crops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photographs, searched throughout")
    parser.add_argument("crops", type=Path, help="folder to write")
    parser.add_argument("--fit", type=int, default=2000)
    parser.add_argument("--judge", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    photos = distinct(arguments.photos)
    rng = np.random.default_rng(arguments.seed)
    order = rng.permutation(len(photos))
    apart = len(photos) // 4
    for name, count, chosen in (("judge", arguments.judge, order[:apart]), ("fit", arguments.fit, order[apart:])):
        folder = arguments.crops / name
        folder.mkdir(parents=True, exist_ok=True)
        for turn, index in enumerate(chosen):
            share = range(turn, count, len(chosen))
            with Image.open(photos[index]) as opened:
                picture = opened.convert("RGB")
            for number in share:
                crop(picture, rng).save(folder / f"{number:05}.png")
        print(f"{name}: {count} crops of {len(chosen)} photographs")


def distinct(folder: Path) -> list[Path]:
    """Photographs of a folder, each once."""
    found: list[Path] = []
    seen: list[np.ndarray] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _KINDS or path.is_symlink() or path.stat().st_size < _LEAST_BYTES:
            continue
        with Image.open(path) as picture:
            if min(picture.size) < _LEAST_SIDE:
                continue
            small = np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=np.float64)
        if all(np.abs(small - other).mean() > _ALIKE for other in seen):
            found.append(path)
            seen.append(small)
    return found


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square of a fifth to all of the shorter side, anywhere, mirrored half of the time."""
    side = int(min(picture.size) * rng.uniform(0.2, 1.0))
    left, top = (int(rng.integers(0, size - side + 1)) for size in picture.size)
    box = (left, top, left + side, top + side)
    found = picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box=box)
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else found


if __name__ == "__main__":
    main()
