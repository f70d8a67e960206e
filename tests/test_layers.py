"""The layers: nothing imports what stands above it."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "t2ifb"
BELOW_BOTH = {"utils", "data", "scorers", "diffusion", "evaluation"}
ALLOWED = {
    "utils": set(),
    "data": {"utils"},
    "scorers": {"utils", "data"},
    "diffusion": {"utils", "data"},
    "evaluation": {"utils", "data", "scorers", "diffusion"},
    "training": {"utils", "data", "scorers", "diffusion"},
    "reward_learning": BELOW_BOTH | {"training"},
    "finetuning": BELOW_BOTH | {"training"},
    "profiling": BELOW_BOTH | {"training", "finetuning"},
    "reporting": BELOW_BOTH,
    "shapes": {"utils", "data", "scorers"},
    "config": {"utils", "data"},
}
"""What each layer may import beside itself."""
PURE = ("training/losses.py", "diffusion/path.py")


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


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_itself_and_what_is_below(layer: str) -> None:
    for file in (PACKAGE / layer).rglob("*.py"):
        for name in imported(file):
            parts = name.split(".")
            if parts[0] == "t2ifb" and len(parts) > 1:
                assert parts[1] in ALLOWED[layer] | {layer}, f"{file.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("name", PURE)
def test_the_mathematics_imports_nothing_but_torch(name: str) -> None:
    assert {module.split(".")[0] for module in imported(PACKAGE / name)} - sys.stdlib_module_names == {"torch"}
