"""The layers: nothing imports what stands above it."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "t2ifb"
ALLOWED = {
    "data": {"data"},
    "scorers": {"scorers", "data"},
    "diffusion": {"diffusion", "data"},
    "evaluation": {"evaluation", "scorers", "diffusion", "data"},
    "learning": {"learning", "evaluation", "scorers", "diffusion", "data"},
    "reporting": {"reporting", "evaluation", "scorers", "diffusion", "data"},
    "shapes": {"shapes", "scorers", "data"},
    "config": {"config", "data"},
}
PURE = ("learning/losses.py", "diffusion/path.py")


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(str(node.module))
    return names


@pytest.mark.parametrize("layer", [layer for layer in ALLOWED if (PACKAGE / layer).is_dir()])
def test_a_layer_imports_only_itself_and_what_is_below(layer: str) -> None:
    for file in (PACKAGE / layer).rglob("*.py"):
        for name in imported(file):
            parts = name.split(".")
            if parts[0] == "t2ifb" and len(parts) > 1:
                assert parts[1] in ALLOWED[layer], f"{file.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("name", [name for name in PURE if (PACKAGE / name).exists()])
def test_the_mathematics_imports_nothing_but_torch(name: str) -> None:
    assert {module.split(".")[0] for module in imported(PACKAGE / name)} - sys.stdlib_module_names == {"torch"}
