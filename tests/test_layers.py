"""The layers: nothing imports what stands above it, and tests lie where the names of modules say."""

import ast
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "t2ifb"
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
    "annotation": BELOW_BOTH,
    "iteration": BELOW_BOTH | {"training", "reward_learning", "finetuning", "annotation", "reporting"},
    "shapes": {"utils", "data", "scorers", "diffusion"},
    "config": {"utils", "data"},
}
"""What each layer may import beside itself."""
PURE = ("training/losses.py", "diffusion/path.py")
CROSS_CUTTING = {
    "annotation/test_browser.py": "the annotators' page in a browser",
    "annotation/test_kill.py": "the annotators' page, killed at any moment",
    "config/test_conf.py": "the values in conf/, of all commands",
    "config/test_experiments.py": "every experiment of conf/, from its arguments to its results",
    "config/test_packaging.py": "the wheel",
    "config/test_shapes_flow.py": "domain=shapes_flow, from its arguments to its results",
    "config/test_real_sweeps.py": "sweeps of real runs, killed and started again",
    "experiments/test_tuning_studies.py": "all studies of fine-tuning",
    "finetuning/test_deterministic.py": "operations of an update that a GPU would not repeat",
    "finetuning/test_fake_gpu.py": "devices, memory and kernels of a GPU that is not there",
    "finetuning/test_golden.py": "adapters after two updates of every algorithm",
    "finetuning/test_half_precision.py": "mixed precision, from the gradient to the whole run",
    "finetuning/test_kill.py": "both stages, killed at any moment",
    "finetuning/test_processes.py": "both stages on several processes",
    "finetuning/test_seams.py": "every algorithm with every family of models",
    "finetuning/test_tuned_layers.py": "a reward model with tuned encoder layers, from training to its export",
    "reporting/test_broken.py": "whole pages of damaged run folders",
    "reporting/test_browser.py": "the page in a browser",
    "reporting/test_contrast.py": "the colours of the page",
    "shapes/training/test_main.py": "make world",
    "test_api.py": "the public Python interface, from strings to whole runs",
    "test_bench.py": "tests/bench.py",
    "test_docs.py": "docs/",
    "test_gpu_check.py": "tests/gpu_check/",
    "test_layers.py": "the code of all modules",
    "test_prose.py": "the texts of all modules",
    "test_real_size.py": "runs at the sizes of published models",
    "test_slurm.py": "docs/slurm.sh",
}
"""Tests that belong to no module, and what they are about."""


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


def test_every_module_has_its_tests_where_its_name_says() -> None:
    modules = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py") if not file.name.startswith("__")]
    lacking = {str(module) for module in modules if not (TESTS / module.parent / f"test_{module.name}").is_file()}
    assert lacking == set()


def test_every_file_of_tests_belongs_to_a_module_or_says_what_it_is_about() -> None:
    """A module, a package or a study; `test_init.py` is of an `__init__.py`."""
    astray = set()
    for file in TESTS.rglob("test_*.py"):
        place = file.relative_to(TESTS)
        home = TESTS.parent if place.parts[0] == "experiments" else PACKAGE
        name = place.stem.removeprefix("test_")
        places = (f"{name}.py", f"{name}/__init__.py", f"{name}/study.py", *(["__init__.py"] if name == "init" else []))
        if not any((home / place.parent / each).is_file() for each in places):
            astray.add(place.as_posix())
    assert astray == CROSS_CUTTING.keys()
