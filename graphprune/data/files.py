"""Which images a folder or a zip holds, and which classes their folders name. Nothing is decoded here."""

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)

# Folders of these names part a data set; they are not classes of it.
_PART_NAMES = frozenset({"test", "train", "training", "val", "valid", "validation"})

_INSIDE_ZIP = "::"


@dataclass(frozen=True)
class FileSet:
    """The image files of one source.

    Attributes:
        name: the source, for messages.
        paths: relative paths with forward slashes, sorted.
        read: gives the bytes of one of `paths`; may be called from several threads.
    """

    name: str
    paths: tuple[str, ...]
    read: Callable[[str], bytes]


@contextmanager
def open_files(source: str | Path) -> Iterator[FileSet]:
    """Yield the images of a folder, of a zip, or of a folder inside a zip (`images.zip::train`).

    A zip is read in place; nothing is extracted.

    Raises:
        DataError: the path is missing, is neither a folder nor a zip, or holds no image.
    """
    archive, inner = _part(str(source))
    if archive.is_dir():
        if inner:
            raise DataError(f"{archive} is a folder: write {archive / inner} instead of {source}")
        yield _checked(FileSet(str(source), _list_folder(archive), lambda path: (archive / path).read_bytes()))
    elif not archive.exists():
        raise DataError(f"no such folder or file: {archive}")
    elif not zipfile.is_zipfile(archive):
        raise DataError(f"{archive} is no folder, zip, .npz or .npy of images")
    else:
        with _open_zip(archive) as opened:
            paths = _list_zip(opened, inner, archive)
            yield _checked(FileSet(str(source), paths, lambda path: opened.read(inner + path)))


def _part(source: str) -> tuple[Path, str]:
    """Part "images.zip::train" into the archive and the prefix "train/"."""
    if _INSIDE_ZIP not in source or Path(source).exists():
        return Path(source), ""
    archive, inner = source.split(_INSIDE_ZIP, 1)
    inner = inner.strip("/")
    return Path(archive), f"{inner}/" if inner else ""


def _list_folder(root: Path) -> tuple[str, ...]:
    found: list[str] = []
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a symbolic link that leads back
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        found += [(relative / name).as_posix() for name in files]
    return tuple(sorted(filter(_is_image, found)))


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is a broken zip: {error}") from error
    with opened:
        yield opened


def _list_zip(opened: zipfile.ZipFile, inner: str, archive: Path) -> tuple[str, ...]:
    names = [name for name in opened.namelist() if name.startswith(inner)]
    if not names:
        top = sorted({name.split("/")[0] for name in opened.namelist() if "/" in name})
        raise DataError(f"{archive} has no folder {inner.rstrip('/')}; it has {', '.join(top[:8]) or 'no folders'}")
    return tuple(sorted(filter(_is_image, (name[len(inner) :] for name in names))))


def _is_image(path: str) -> bool:
    parts = path.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(parts[-1])[1].lower() in IMAGE_SUFFIXES


def _checked(files: FileSet) -> FileSet:
    if not files.paths:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"there is no image in {files.name} (looked for {kinds}, in subfolders too)")
    return files


@dataclass(frozen=True)
class Classes:
    """A label for every path, and the class names in the order of the labels."""

    labels: NDArray[np.int64]
    names: tuple[str, ...]


def class_labels(paths: Sequence[str]) -> Classes | None:
    """Return the classes that the folders of these paths name, or None if they name none.

    Classes are the folders directly below the root, in alphabetical order.
    1. Folders that all paths share are no classes; what follows them is looked at.
    2. Folders that part the data (train, val, test...) are no classes; those below them are.
    3. An image beside the folders, or fewer than two folders: no classes.
    """
    folders = [path.split("/")[:-1] for path in paths]
    while all(len(parts) > 1 for parts in folders) and len({parts[0] for parts in folders}) == 1:  # 1.
        folders = [parts[1:] for parts in folders]
    if all(len(parts) > 1 and parts[0].lower() in _PART_NAMES for parts in folders):  # 2.
        folders = [parts[1:] for parts in folders]
    names = sorted({parts[0] if parts else "" for parts in folders})
    if len(names) < 2 or names[0] == "":  # 3.
        return None
    index = {name: label for label, name in enumerate(names)}
    return Classes(np.array([index[parts[0]] for parts in folders], np.int64), tuple(names))
