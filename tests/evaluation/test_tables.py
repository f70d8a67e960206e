"""The table says the same on the screen, in Markdown, CSV and JSON."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import (
    HEADINGS,
    Row,
    cells,
    escape_markdown,
    markdown,
    order_table,
    screen,
    screen_table,
    show,
    write_matrix,
    write_table,
)

ROWS = [
    Row("random", Interval(0.5, 0.45, 0.55), Interval(0.51, 0.4, 0.6), 0, 800),
    Row("CLIP Score", Interval(0.62, 0.58, 0.66), Interval(0.61, 0.57, 0.65), 3, 800, published=54.82),
    Row("[bold]mine[/] | a", Interval(0.7, 0.66, 0.74), None, 0, 800, against=Interval(0.08, 0.05, 0.11)),
    Row("ImageReward", published=65.14),
]


def test_cells_stand_under_their_headings() -> None:
    shown = dict(zip(HEADINGS, cells(ROWS[2]), strict=True))
    assert shown["scorer"] == "[bold]mine[/] | a"
    assert shown["accuracy %"] == "70.00 [66.0, 74.0]"
    assert shown["difference"] == "+8.00 [+5.0, +11.0]"
    assert shown["published %"] == ""


def test_the_screen_shows_names_as_text() -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(screen_table(ROWS, 200, "test"))
    text = console.export_text()
    assert "[bold]mine[/] | a" in text
    assert "minus CLIP Score" in text
    assert "54.82" in text
    assert "Preference accuracy on 200 test prompts" in text and "too few" not in text


def test_titles_and_headings_are_text_too(capsys: pytest.CaptureFixture[str]) -> None:
    show(screen("runs[/]/[bold]a", ["[red]name", "[/x]"], [["a", "1"]]))
    text = capsys.readouterr().out
    assert "runs[/]/[bold]a" in text and "[red]name" in text and "[/x]" in text
    table = screen_table(ROWS, 1, "[bold]mine[/]")
    assert str(table.title).endswith("1 [bold]mine[/] prompt") and str(table.caption).startswith("1 [bold]mine[/]")


def test_few_prompts_are_said_to_be_few() -> None:
    table = screen_table(ROWS, 1, "test")
    assert str(table.title) == "Preference accuracy on 1 test prompt"
    assert str(table.caption) == "1 test prompt: too few for a verdict, and the intervals are too narrow"


def test_columns_without_content_are_left_out() -> None:
    table = screen_table([Row("random", Interval(0.5, 0.4, 0.6))], 1, "test")
    assert [str(column.header) for column in table.columns] == ["scorer", "accuracy %"]


def test_files_hold_every_row(tmp_path: Path) -> None:
    write_table(ROWS, tmp_path)
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1  # a name's bar ends no cell
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scorer"] for row in rows] == [row.name for row in ROWS]
    data = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert data[1]["accuracy"] == {"mean": 0.62, "low": 0.58, "high": 0.66}
    assert data[3]["accuracy"] is None


def test_csv_has_the_numbers(tmp_path: Path) -> None:
    row = Row("a", Interval(0.5, 0.4, 0.6), tau=Interval(0.1, -0.2, 0.3), images_per_second=12.345)
    write_table([Row("published", published=3.0), row], tmp_path)
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[1] == {
        "scorer": "a", "accuracy": "0.5", "accuracy_low": "0.4", "accuracy_high": "0.6", "tau": "0.1",
        "tau_low": "-0.2", "tau_high": "0.3", "images_per_second": "12.345", "published": "",
    }  # fmt: skip


WILD = "$5 & 10% of #1_a {b} ~c^ \\d | <e> `f` *g*\nh"


def test_names_are_text_in_latex(tmp_path: Path) -> None:
    write_table([Row(WILD, Interval(0.5, 0.4, 0.6))], tmp_path)
    lines = (tmp_path / "table.tex").read_text(encoding="utf-8").splitlines()
    name = (
        r"\$5 \& 10\% of \#1\_a \{b\} \textasciitilde{}c\^{} \textbackslash{}d | "
        r"\ensuremath{<}e\ensuremath{>} `f` *g* h"
    )
    assert lines[1] == r"\begin{tabular}{lr}"
    assert lines[3].split() == [r"scorer", r"&", r"accuracy", r"\%", r"\\"]
    assert lines[5].split() == (name + r" & 50.00 [40.0, 60.0] \\").split()


def test_a_minus_is_a_minus_in_latex(tmp_path: Path) -> None:
    write_table([Row("a-1", Interval(0.5, 0.4, 0.6), against=Interval(-0.1, -0.2, 0.05))], tmp_path)
    line = " ".join((tmp_path / "table.tex").read_text(encoding="utf-8").splitlines()[5].split())
    assert line == r"a-1 & 50.00 [40.0, 60.0] & $-$10.00 [$-$20.0, +5.0] \\"


def test_names_are_text_in_markdown(tmp_path: Path) -> None:
    assert escape_markdown(WILD) == (r"$5 &amp; 10% of \#1\_a {b} \~c^ \\d \| &lt;e> \`f\` \*g\* h")
    assert escape_markdown("[bold](x)") == r"\[bold\](x)"
    write_table([Row(WILD, Interval(0.5, 0.4, 0.6))], tmp_path)
    assert (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()[2] == (
        f"| {escape_markdown(WILD)} | 50.00 [40.0, 60.0] |"
    )


def test_headings_are_text_in_markdown() -> None:
    assert r"| my\|scorer " in markdown(["name", "my|scorer"], [])


def test_tau_and_speed_have_their_own_table_on_the_screen() -> None:
    row = Row("a", Interval(0.5, 0.4, 0.6), tau=Interval(0.1, -0.2, 0.3), images_per_second=1234.5)
    headings = [str(column.header) for column in screen_table([row], 200, "test").columns]
    assert headings == ["scorer", "accuracy %"]
    table = order_table([row, Row("published", published=1.0)], "")
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [
        ["a"], ["0.100 [-0.200, 0.300]"], ["1,234"]
    ]  # fmt: skip


def test_a_matrix_has_its_names(tmp_path: Path) -> None:
    write_matrix(["a,b", "c"], np.array([[1, 0.25], [0.25, 1]]), tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["scorer", "a,b", "c"], ["a,b", "1.0", "0.25"], ["c", "0.25", "1.0"]]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_table([Row("nothing", Interval(np.nan, np.nan, np.nan))], tmp_path)

    def refuse(token: str) -> None:
        pytest.fail(f"{token} is not JSON")

    data = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert data[0]["accuracy"]["mean"] is None


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_numbers_are_whole_in_any_terminal_and_text_is_folded(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    name, numbers = "a_rather_long_name_of_a_scorer", ["0.1234", "98.76 [95.43, 99.99]", "-46.67 [-86.7, -6.7]"]
    show(screen("figures", ["scorer", "score", "accuracy %", "difference"], [[name, *numbers]]))
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if numbers[0] in line]
    assert line.split("  ", 1)[1].split() == " ".join(numbers).split()
    start = lines.index(line)
    assert "".join(part[:40].split("  ")[0].strip() for part in lines[start:]) == name
    assert "…" not in "".join(lines)
