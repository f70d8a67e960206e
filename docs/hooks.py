"""MkDocs hooks: pages made from `experiments/` and `conf/` at build time, so that nothing is copied by hand."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).resolve().parents[1]
STUDIES = sorted(path.parent.name for path in CHECKOUT.glob("experiments/*/README.md"))
CONF = CHECKOUT / "conf"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every study into the navigation."""
    assert config.nav is not None
    config.nav.append({"Studies": ["studies/index.md", *(f"studies/{name}/README.md" for name in STUDIES)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each study's page and picture from where they are."""
    for name in STUDIES:
        for path in (CHECKOUT / "experiments" / name).iterdir():
            if path.suffix in (".md", ".png"):
                files.append(File.generated(config, f"studies/{name}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links into `experiments/` to the studies' pages, and fill in the configuration reference."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+experiments/", f"]({up}studies/", markdown)
    return markdown.replace("<!-- groups of conf/ -->", _groups()) if "<!-- groups" in markdown else markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Fail if a page would fetch something from elsewhere when it is read."""
    for tag in re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", output):
        if re.search(r'(?:src|href)="?(?:https?:)?//', tag):
            raise ValueError(f"{page.file.src_uri} fetches from elsewhere: {tag}")
    return output


def _groups() -> str:
    """A section for each folder of `conf/`: its options, what their first comment says, and the files themselves."""
    folders = sorted({file.parent for file in CONF.rglob("*.yaml")} - {CONF})
    sections = [("Commands", sorted(CONF.glob("*.yaml")))]
    for folder in folders:
        sections.append((f"`{folder.relative_to(CONF).as_posix()}`", sorted(folder.glob("*.yaml"))))
    return "\n\n".join(_section(title, files) for title, files in sections)


def _section(title: str, files: list[Path]) -> str:
    rows = [f"| `{file.stem}` | {_comment(file)} |" for file in files]
    sources = "\n\n".join(_source(file) for file in files)
    return "\n".join([f"## {title}", "", "| option | |", "|---|---|", *rows, "", sources])


def _comment(file: Path) -> str:
    """The comment at the top of a YAML file, in one line."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment).replace("|", "\\|").replace("<", "&lt;")


def _source(file: Path) -> str:
    """A file's text, folded."""
    text = "\n".join(f"    {line}".rstrip() for line in ["```yaml", *file.read_text("utf-8").splitlines(), "```"])
    return f'??? note "{file.relative_to(CONF).as_posix()}"\n\n{text}'
