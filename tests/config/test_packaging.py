"""What an installation holds."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import check
from tests.conftest import CHECKOUT

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    found = {".".join(file.parent.relative_to(CHECKOUT).parts) for file in (CHECKOUT / "t2ifb").rglob("__init__.py")}
    assert {"t2ifb.conf", *found} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_dependency_has_its_exact_version() -> None:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]["dev"]
    for requirement in [*PROJECT["project"]["dependencies"], *extras]:
        name = requirement.partition(">")[0].lower().replace("_", "-")
        assert name in pinned, name
    assert not any("@" in line or "/" in line for line in lines if not line.startswith("#"))


NAMED = {
    "torch": "torch",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "peft": "peft",
    "hydra-core": "hydra",
    "omegaconf": "omegaconf",
    "lightning": "lightning",
    "wandb": "wandb",
    "open_clip_torch": "open_clip",
    "datasets": "datasets",
}
"""Distributions that the design names, and their modules."""


def called(file: Path) -> set[str]:
    """Modules from which a file imports a name that it calls or builds a class on."""
    bound: dict[str, str] = {}
    used: list[ast.expr] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            bound |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name: str(node.module) for alias in node.names}
        elif isinstance(node, ast.Call):
            used.append(node.func)
        elif isinstance(node, ast.ClassDef):
            used += node.bases
    names = {ast.unparse(expression).partition(".")[0] for expression in used}
    return {module.partition(".")[0] for name, module in bound.items() if name in names}


def test_the_packages_that_the_design_names_are_dependencies_and_are_called() -> None:
    required = {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in PROJECT["project"]["dependencies"]}
    assert required >= NAMED.keys()
    found = {module for file in (CHECKOUT / "t2ifb").rglob("*.py") for module in called(file)}
    assert found >= set(NAMED.values())


def test_make_explains_itself() -> None:
    text = subprocess.run(["make"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for target in ("install", "demo", "demo-full", "test", "test-slow", "lint", "bench", "world", "clean", "help"):
        assert f"make {target} " in text


@pytest.mark.parametrize(("target", "last"), [("demo", "evaluate"), ("demo-full", "train")])
def test_the_demos_commands_are_right(target: str, last: str, tmp_path: Path) -> None:
    """They compose and pass the check that they begin with. What is finished is skipped, what has begun is resumed."""

    def commands() -> list[list[str]]:
        asked = ["make", "-n", target, f"RUNS={tmp_path}"]
        text = subprocess.run(asked, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
        lines = text.replace("\\\n", " ").splitlines()
        return [shlex.split(line.partition(" -m t2ifb.")[2]) for line in lines if " -m t2ifb." in line]

    *runs, page = commands()
    assert [words[0] for words in (*runs, page)] == ["train", "train", "train", last, "report"]
    folders = [words[-1].removeprefix("hydra.run.dir=") for words in runs]
    for words in runs:
        check(compose_all(words[0], words[1:])[0])
    trained = [folder for words, folder in zip(runs, folders, strict=True) if words[0] == "train"]
    assert {folder.rstrip("/") for folder in page[1:-2]} == set(trained)

    for folder in map(Path, folders[:2]):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.ckpt").touch()
    Path(folders[0], "summary.json").touch()
    assert commands() == [["train", f"resume={folders[1]}"], *runs[2:], page]


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="setuptools builds the wheel")
    source = tmp_path / "source"
    tracked = ["pyproject.toml", "README.md", "LICENSE", "conf", "t2ifb"]
    source.mkdir()
    subprocess.run(["cp", "-r", *(str(CHECKOUT / name) for name in tracked), str(source)], check=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    page = (CHECKOUT / "t2ifb" / "reporting" / "page").iterdir()
    for file in [*(CHECKOUT / "conf").rglob("*.yaml"), *(CHECKOUT / "t2ifb").rglob("*.py"), *page]:
        inside = file.relative_to(CHECKOUT).as_posix()
        assert (f"t2ifb/{inside}" if inside.startswith("conf/") else inside) in names
    prompts = "+build.prompts={train: 3, validation: 1, test: 1, compositional: 1}"
    run = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "t2ifb.train", "+experiment=reward_mlp", "logger=none"),
            *(prompts, "algorithm.epochs=2"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "T2IFB_DATA": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "annotator ceiling" in run.stdout
    assert len(list(tmp_path.glob("outputs/shapes/reward_mlp/*/export/reward.safetensors"))) == 1
