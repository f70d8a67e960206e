"""Public classes and functions of a package, found in its files and imported on first use."""

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path


def classes_with(package: str, folder: Path, methods: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Public classes in a package's files that have all of some methods. Nothing is imported.

    Protocols are left out.

    Args:
        package: Full name of the package.
        folder: Folder of the package.
        methods: First parameters of each method, without `self`, by the method's name.

    Returns:
        Full module names by class name.
    """
    wanted = tuple((name, tuple(parameters)) for name, parameters in methods.items())
    return {name: f"{package}.{module}" for name, module in _classes(folder, wanted).items()}


@cache
def _classes(folder: Path, methods: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, str]:
    found = {}
    for file in sorted(folder.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and _has(node, methods):
                found[node.name] = file.stem
    return found


def _has(node: ast.ClassDef, methods: tuple[tuple[str, tuple[str, ...]], ...]) -> bool:
    if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
        return False
    own = {
        each.name: tuple(a.arg for a in each.args.args if a.arg not in ("self", "cls"))
        for each in node.body
        if isinstance(each, ast.FunctionDef)
    }
    return all(own.get(name, ())[: len(parameters)] == parameters and name in own for name, parameters in methods)


@cache
def typed_imports(file: Path) -> dict[str, str]:
    """Full module names of what a file imports `if TYPE_CHECKING`, by name; those of `import *` are left out."""
    found: dict[str, str] = {}
    for block in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            for node in block.body:
                if isinstance(node, ast.ImportFrom):
                    found |= {alias.asname or alias.name: str(node.module) for alias in node.names}
    found.pop("*", None)
    return found
