"""The order of the rooms: whatever a room imports, at whatever moment, lies below it."""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent

#: From the ground up. A room is a folder, or one of the modules beside them.
FLOORS = (
    "passes.errors",
    "passes",
    "passes.channels",
    "passes.onnx",
    "passes.fx",
    "passes.importer",
    "version",
    "errors",
    "models",
    "widths",
    "freezing",
    "runtime",
    "testing",
    "data",
    "verification",
    "formats",
    "inputs",
    "latency",
    "report",
    "allocation",
    "reconstruction",
    "importance",
    "config",
    "training",
    "search",
    "int8",
    "api",
    "slimming",
    "delivery",
    "compress",
    "demo",
    "cli",
    "__main__",
)
_FLOOR = {room: floor for floor, room in enumerate(FLOORS)}


@dataclass(frozen=True)
class Import:
    """One import: the module it stands in, the module it names, and whether it is made when a program runs."""

    of: str
    what: str
    line: int
    at_run_time: bool


def room(module: str) -> str:
    """`graphprune.passes.fx.cut` lies in `passes.fx`, `graphprune.training.engine` in `training`."""
    parts = module.split(".")[1:]
    if parts[:1] != ["passes"]:
        return parts[0]
    return ".".join(parts[:2]) if ".".join(parts[:2]) in _FLOOR else "passes"


def modules() -> dict[str, Path]:
    """Every module under the name it is installed by."""
    found = {}
    for folder, name in (("graphprune", "graphprune"), ("passes", "graphprune.passes"), ("cli", "graphprune.cli")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


def imports(name: str, source: str, known: Mapping[str, object]) -> Iterator[Import]:
    """All imports in a module's text, those inside functions and for type checkers included."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute here"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in known else str(node.module) for target in whole]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(name, target, node.lineno, id(node) not in for_types)


def upward(found: list[Import]) -> list[str]:
    """The imports that do not lead downward, in words."""
    return [
        f"{i.of}:{i.line} imports {i.what}: {room(i.what)} lies above {room(i.of)}"
        for i in found
        if i.what.startswith("graphprune.") and i.of != "graphprune" and _FLOOR[room(i.what)] > _FLOOR[room(i.of)]
    ]


@pytest.fixture(scope="module")
def everything() -> list[Import]:
    known = modules()
    return [found for name, path in known.items() for found in imports(name, path.read_text(), known)]


def test_every_room_has_a_floor_and_every_floor_a_room():
    assert {room(name) for name in modules() if name != "graphprune"} == set(FLOORS)


def test_no_import_leads_upward(everything):
    assert upward(everything) == []


@pytest.mark.parametrize(
    ("module", "line", "lies"),
    [
        ("graphprune.runtime.machine", "from graphprune.training.engine import Engine", "training lies above runtime"),
        ("graphprune.passes.onnx.cut", "    import graphprune.passes.fx.cut", "passes.fx lies above passes.onnx"),
        ("graphprune.passes.slim", "import graphprune.config", "config lies above passes"),
        ("graphprune.compress", "from graphprune.cli import main", "cli lies above compress"),
    ],
)
def test_an_upward_import_is_seen_wherever_it_stands(module, line, lies):
    source = f"def inside():\n{line}\n" if line.startswith(" ") else f"{line}\n"
    (found,) = upward(list(imports(module, source, modules())))
    assert lies in found


def test_no_module_needs_itself(everything):
    graph = nx.DiGraph([(i.of, i.what) for i in everything if i.at_run_time and i.of != "graphprune"])
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_the_core_and_the_onnx_front_end_know_nothing_of_torch(everything):
    rooms = {"passes.errors", "passes", "passes.channels", "passes.onnx"}
    below = [i for i in everything if i.of != "graphprune" and room(i.of) in rooms]
    assert len(below) > 100
    assert [i for i in below if i.what.split(".")[0] in {"torch", "torchvision"}] == []


def test_the_top_of_the_library_stays_small():
    top = sorted((ROOT / "graphprune").glob("*.py"))
    assert len(top) <= 12, [path.name for path in top]
    assert len([path for path in (ROOT / "graphprune").iterdir() if path.name != "__pycache__"]) <= 28


def test_every_room_says_what_it_is_for():
    doors = [path for name, path in modules().items() if path.name == "__init__.py"]
    assert len(doors) > 15
    for door in doors:
        first = (ast.get_docstring(ast.parse(door.read_text())) or "").split("\n")[0]
        assert len(first) > 20, door


def test_the_page_on_architecture_shows_every_room_on_its_floor():
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture = page.split("### Rooms of the library")[1].split("```")[1]
    named = [words for line in picture.splitlines() if (words := line.split())]
    shown = [name.rstrip("/") for words in named for name in words if name.rstrip("/").replace("/", ".") in _FLOOR]
    # The page goes downward, and lists some that do not need each other side by side.
    floors = [max(_FLOOR[name.replace("/", ".")] for name in words) for words in _rows(named)]
    assert floors == sorted(floors, reverse=True)
    assert {name.replace("/", ".") for name in shown} >= set(FLOORS) - {"passes", "passes.errors"}


def _rows(named: list[list[str]]) -> list[list[str]]:
    """The names of rooms at the start of each line: they are followed by two spaces or end with a slash."""
    rows = []
    for words in named:
        row = []
        for word in words:
            if word.rstrip("/").replace("/", ".") not in _FLOOR:
                break
            row.append(word.rstrip("/"))
        if row:
            rows.append(row)
    return rows


def test_tests_stand_in_the_room_of_what_they_test():
    """`tests/graphprune/x/test_y.py` is about a module of room x: the folders are the same."""
    rooms = {name for name in FLOORS if (ROOT / "graphprune" / name).is_dir()}
    folders = {path.name for path in (ROOT / "tests" / "graphprune").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders <= rooms
    strangers = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests" / "graphprune").glob("test_*.py")
        if path.stem.removeprefix("test_").split("_")[0] not in {m.split(".")[1] for m in modules() if "." in m}
    ]
    assert strangers == []


def test_an_import_of_the_package_brings_next_to_nothing():
    """What `graphprune --version` costs is what is imported for it."""
    import subprocess

    code = "import sys, graphprune.cli.main; print(*sorted(m for m in sys.modules if m.startswith('graphprune.')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {room(name) for name in done.stdout.split()} <= {"passes", "passes.errors", "errors", "version", "cli"}
