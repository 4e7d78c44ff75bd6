"""The house's order: each module imports only from rooms above it, and the package itself imports next to nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import head2toe

SOURCE = Path(head2toe.__file__).parent
ORDER = (
    "errors", "files", "cells", "taps", "images", "solvers", "table", "store", "backbones", "data", "extract",
    "selection", "gather", "head", "network", "apply", "methods", "bench", "present", "demo", "cli",
)  # fmt: skip
HEAVY = (
    "torch", "lance", "numba", "transformers", "timm", "torchvision", "ray", "sklearn", "pyarrow", "datasets",
    "matplotlib", "jinja2",
)  # fmt: skip
ONLY_IN = {
    "lance": "store",
    "datasets": "data",
    "timm": "backbones",
    "torchvision": "backbones",
    "transformers": "backbones",
}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every dotted name that a module imports, wherever in the file, types included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" or path.parent != SOURCE)


def test_every_room_has_its_place():
    assert {room(path) for path in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_from_rooms_above(path):
    own = ORDER.index(room(path))
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "head2toe" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= own, f"{path.name} imports {name}, which is below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_framework_is_named_in_one_room(path):
    for name in imports(path):
        top = name.split(".")[0]
        assert ONLY_IN.get(top, room(path)) == room(path), f"{path.name} names {top}"


@pytest.mark.parametrize(
    "statement",
    ["import head2toe", "import head2toe.cli", "import head2toe.data", "import head2toe.table, head2toe.taps"],
)
def test_importing_is_light(statement):
    code = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names():
    assert sorted(head2toe.__all__) == [
        "AllFeatures", "Backbone", "Control", "FeatureStore", "FeatureTable", "FineTune", "Head", "Head2Toe",
        "Head2ToeError", "Head2ToeFT", "Linear", "Network", "Oracle", "Paper", "Pool", "Scratch", "Tap", "Task",
        "Training", "__version__", "load_backbone", "load_head", "load_model", "load_task", "relevance_scores",
        "task_from_arrays",
    ]  # fmt: skip


@pytest.mark.parametrize("name", head2toe.__all__)
def test_every_public_name_is_there(name):
    assert getattr(head2toe, name) is not None
