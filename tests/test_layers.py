"""The house: imports only point down, and no two rooms or modules need each other."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import hf_jepa

ROOT = Path(hf_jepa.__file__).parent
LAYERS = [
    {
        "masking",
        "objectives",
        "methods",
        "attention",
        "file_errors",
        "modeling_jepa",
        "parts",
        "poses",
        "positions",
        "silence",
        "streaming",
        "version",
    },
    {"adapters", "encoders", "predictor", "regularized", "token_layouts", "world_model"},
    {"data"},
    {"models"},
    {"evaluation", "hub", "pipelines", "planning"},
    {"conversion", "training"},
    {"visualization"},
    {"programs"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def read_imports(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, at the top, in functions or under TYPE_CHECKING."""
    package = root.name
    files = {}
    for path in root.rglob("*.py"):
        parts = (package, *path.relative_to(root).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    edges = defaultdict(set)
    for module, path in files.items():
        home = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                base = ".".join([*home[: len(home) - node.level + 1], *([node.module] if node.module else [])])
                names = [f"{base if node.level else node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                found = name if name in files else name.rpartition(".")[0]
                if found in files and found != module:
                    edges[module].add(found)
    return edges


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def faults(edges: dict[str, set[str]]) -> list[str]:
    """Arrows that point up or out of the house, and circles of rooms or of modules."""
    found = []
    rooms = defaultdict(set)
    for module, targets in edges.items():
        for target in targets:
            here, there = room(module), room(target)
            if not here or here == there:  # the front door may open every room
                continue
            if not there or LEVEL[there] > LEVEL[here]:
                found.append(f"{module} imports {target}, which is above it")
            rooms[here].add(there)
    for name, graph in (("rooms", rooms), ("modules", {m: t for m, t in edges.items() if room(m)})):
        circle = find_circle(graph)
        if circle:
            found.append(f"{name} in a circle: {' -> '.join(circle)}")
    return found


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if circle := walk(following, [*path, node]):
                return circle
        done.add(node)
        return []

    for start in sorted(graph):
        if circle := walk(start, []):
            return circle
    return []


def test_every_room_has_a_layer():
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} <= LEVEL.keys()


def test_imports_point_down_and_never_in_circles():
    assert faults(read_imports(ROOT)) == []


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"data/a.py": "from ..training import b", "training/b.py": ""}, "data.a imports"),
        ({"data/a.py": "def f():\n    from ..models.b import x", "models/b.py": "x = 1"}, "data.a imports"),
        ({"hub/a.py": "if TYPE_CHECKING:\n    from ..cli import b", "cli/b.py": ""}, "hub.a imports"),
        ({"hub/a.py": "from .. import x"}, "hub.a imports"),
        ({"hub/a.py": "from ..evaluation import b", "evaluation/b.py": "from ..hub import a"}, "rooms in a circle"),
        ({"data/a.py": "from .b import x", "data/b.py": "def f():\n    from .a import y"}, "modules in a circle"),
    ],
)
def test_each_fault_is_found(tmp_path, files, fault):
    root = tmp_path / "hf_jepa"
    for name, text in {"__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).parent.joinpath("__init__.py").touch()
        (root / name).write_text(text)
    assert any(fault in line for line in faults(read_imports(root)))
