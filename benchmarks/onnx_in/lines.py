"""Lines of text, rendered: what a recogniser learns from, and other ones to judge it on.

    python benchmarks/onnx_in/lines.py FOLDER --words /usr/share/dict/words --fonts FONT.ttf ... [--count 1200]

Every line is an image of 48 x 320 pixels: some words, numbers or random characters, in a font, size, color and place
drawn at random, with blur and noise on some. The same arguments give the same images.
"""

import argparse
import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = (320, 48)
_CHARACTERS = string.ascii_letters + string.digits + ".,:;!?-+*/()%&$#@"


def main() -> None:
    """Write the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--words", type=Path, help="a word a line; by default words are random letters")
    parser.add_argument("--fonts", nargs="+", required=True)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=float, default=0.3, help="share of lines of random characters")
    arguments = parser.parse_args()
    words = arguments.words.read_text().split() if arguments.words else []
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.count):
        rng = np.random.default_rng((arguments.seed, number))
        line(rng, words, arguments.fonts, arguments.random).save(arguments.folder / f"{number:05}.png")


def line(rng: np.random.Generator, words: list[str], fonts: list[str], share: float) -> Image.Image:
    """One image."""
    text = random_text(rng) if not words or rng.random() < share else words_of(rng, words)
    font = ImageFont.truetype(str(rng.choice(fonts)), int(rng.integers(20, 38)))
    is_dark = rng.random() < 0.8
    near, far = rng.integers(150, 256, 3), rng.integers(0, 110, 3)
    paper, ink = (near, far) if is_dark else (far, near)
    image = Image.new("RGB", SIZE, tuple(map(int, paper)))
    draw = ImageDraw.Draw(image)
    while text and draw.textlength(text, font) > SIZE[0] - 8:
        text = text[:-1]
    box = draw.textbbox((0, 0), text, font)
    room = SIZE[0] - (box[2] - box[0]), SIZE[1] - (box[3] - box[1])
    left = int(rng.integers(0, max(room[0], 1))) if rng.random() < 0.3 else 4
    top = max(room[1] // 2 + int(rng.integers(-3, 4)), 0)
    draw.text((left - box[0], top - box[1]), text, tuple(map(int, ink)), font)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(2, 10), (SIZE[1], SIZE[0], 3))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image


def words_of(rng: np.random.Generator, words: list[str]) -> str:
    """Some words, capitalised now and then, with a number at times."""
    found = [str(rng.choice(words)) for _ in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.3:
        found.append(str(int(rng.integers(0, 10 ** int(rng.integers(1, 6))))))
    style = rng.random()
    text = " ".join(found)
    return text.upper() if style < 0.15 else text.title() if style < 0.4 else text


def random_text(rng: np.random.Generator) -> str:
    """Random characters, blanks among them."""
    return "".join(rng.choice(list(_CHARACTERS + "  "), int(rng.integers(4, 16)))).strip() or "x"


if __name__ == "__main__":
    main()
