"""README and documentation: links lead somewhere, and code blocks are what they claim to be.

Comments above a block say how it is checked; CONTRIBUTING.md lists them.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import check
from t2ifb.config.schema import SCHEMAS
from t2ifb.report import _parser
from t2ifb.shapes.weights import CLIP, IMAGE_REWARD, PIPELINE
from tests.conftest import CHECKOUT, Command
from tests.training.worlds import brightness_world

DOCS = CHECKOUT / "docs"
WRITTEN = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PAGES = {str(path.relative_to(CHECKOUT)): path.read_text(encoding="utf-8") for path in WRITTEN}
STUDIES = {
    str(path.relative_to(CHECKOUT)): path.read_text(encoding="utf-8")
    for path in sorted(CHECKOUT.glob("experiments/*/README.md"))
}
BLOCK = re.compile(r"(?:^<!-- (?P<note>.*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
PLACES = {
    '"path/to/ImageRewardDB", subset="8k"': '"db"',
    '"path/to/ImageRewardDB"': '"db"',
    '"ViT-L-14-quickgelu", "openai"': f'"local-dir:{CLIP}"',
    '"ViT-L-14-quickgelu/openai"': f'"{CLIP}"',
    '"stable-diffusion-v1-5/stable-diffusion-v1-5"': f'"{PIPELINE}"',
    '"zai-org/ImageReward"': f'"{IMAGE_REWARD}"',
    "=40": "=4",
    "(30, 39)": "(2, 3)",
}
"""What stands for data, models and lengths that a test cannot have."""


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    note: str

    @property
    def is_run(self) -> bool:
        return not self.note.startswith("not run")

    @property
    def slow(self) -> bool:
        return self.note in ("slow", "run")


def blocks_of(page: str, language: str) -> list[Block]:
    found = [Block(m["language"], m["code"], m["note"] or "") for m in BLOCK.finditer(PAGES[page])]
    return [block for block in found if block.language == language]


def lines_of(block: Block) -> Iterator[list[str]]:
    """The words of each command; a backslash continues a line."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


PYTHON = [page for page in PAGES if blocks_of(page, "python")]
COMMANDS = {
    shlex.join(words): words
    for page in PAGES
    for block in blocks_of(page, "bash")
    if block.is_run
    for words in lines_of(block)
}
REAL = [page for page in PAGES if any(block.note == "run" for block in blocks_of(page, "bash"))]


def test_the_notes_above_blocks_are_known() -> None:
    for page in PAGES:
        for note in re.findall(r"^<!-- (.*?) -->\n```", PAGES[page], re.MULTILINE):
            assert note in ("slow", "run") or re.fullmatch(r"not run: .+", note), (page, note)
        languages = set(re.findall(r"^```(\w+)$", PAGES[page], re.MULTILINE))
        assert languages <= {"bash", "python", "text", "yaml"}, page  # others would be checked by nothing


def execute(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """Run a page's Python from top to bottom in one namespace; of a block that is not run, its imports."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("T2IFB_DATA", str(folder / "data"))
    names: dict[str, object] = {"__name__": page}
    for block in blocks_of(page, "python"):
        code = block.code
        for there, here in PLACES.items():
            code = code.replace(there, here)
        tree = ast.parse(code, page)
        if not block.is_run:
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if slow or not block.slow:
            exec(compile(tree, page, "exec"), names)


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(page, tmp_path, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PYTHON if any(block.slow for block in blocks_of(p, "python"))])
def test_long_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brightness_world(tmp_path / "db", prompts=6)
    for name, prompt in (("train", "a red star"), ("validation", "a blue circle"), ("test", "two red squares")):
        (tmp_path / f"{name}.txt").write_text(f"{prompt} on a gray background\n")
        with (tmp_path / "prompts.txt").open("a") as file:
            file.write(f"{prompt} on a white background\n")
    execute(page, tmp_path, monkeypatch, slow=True)
    if '"outputs/tuned"' in PAGES[page]:
        assert (tmp_path / "outputs" / "tuned" / "export" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_right(line: str) -> None:
    """Every command composes and passes the check that it begins with; nothing is built."""
    words = COMMANDS[line]
    if words[0] == "make":
        assert f"\n{words[1]}:" in (CHECKOUT / "Makefile").read_text()
        return
    assert words[:2] == ["python", "-m"], f"{line} is not checked: put '<!-- not run: reason -->' above its block"
    command, arguments = words[2].removeprefix("t2ifb."), words[3:]
    if command == "report":
        assert _parser().parse_args(arguments).folders
        return
    assert command in SCHEMAS
    multirun = "-m" in arguments
    for flag, values in (("-m", 0), ("--help", 0), ("--cfg", 1), ("--where", 1)):
        if flag in arguments:
            place = arguments.index(flag)
            del arguments[place : place + 1 + values]
    for composed in compose_all(command, arguments, multirun=multirun)[:2]:
        check(composed)


@pytest.mark.slow
@pytest.mark.parametrize("page", REAL)
def test_real_commands_run(page: str, run_module: Command) -> None:
    for block in blocks_of(page, "bash"):
        for words in lines_of(block) if block.note == "run" else ():
            done = run_module(words[2], *words[3:])
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [*PAGES, *STUDIES])
def test_links_lead_somewhere(page: str) -> None:
    text = BLOCK.sub("", (PAGES | STUDIES)[page])
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://", target):
            path = (CHECKOUT / page).parent / target.partition("#")[0]
            assert path.is_file(), f"{page} links to {target}"


def test_every_page_is_in_the_navigation() -> None:
    def listed(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:  # type: ignore[attr-defined]
                yield from listed(part)

    pages = set(listed(yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text())["nav"]))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages == written - {"studies/index.md"}  # docs/hooks.py adds the studies


def test_the_readme_is_short_and_warns() -> None:
    readme = PAGES["README.md"]
    assert len(readme.encode()) <= 8 * 1024
    results = readme.partition("## Results")[2].lstrip()
    assert results.startswith("> **Adapters tuned by `+experiment=refl` are harmful")
    assert "-0.116 [-0.136, -0.096]" in results
