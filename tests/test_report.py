from pathlib import Path

import pytest

from t2ifb.report import main
from tests.conftest import Command
from tests.reporting.parts import write_tuning_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for n in range(2):
        write_tuning_run(tmp_path / "outputs" / "shapes" / "refl" / str(n), beta=n / 10)
    return tmp_path / "outputs"


def test_it_says_where_the_page_is_and_how_large(run_module: Command, runs: Path) -> None:
    done = run_module("t2ifb.report", "outputs", "--title", "My <runs>")
    page = runs / "shapes" / "refl" / "report.html"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"2 runs, {page.stat().st_size / 1e6:.1f} MB: {page}\n"
    assert "<title>My &lt;runs&gt;</title>" in page.read_text()
    again = run_module("t2ifb.report", "outputs/shapes/refl/0", "--output", "new/one.html")
    assert again.stdout.startswith("1 run, ")
    assert (runs.parent / "new" / "one.html").is_file()


def test_bad_input_ends_with_one_line_and_status_2(run_here: Command, runs: Path) -> None:
    (runs.parent / "empty").mkdir()
    for arguments, text in (
        (["empty"], "no run found in empty; expected a run folder (training or evaluation"),
        (["outputs/shapes/refl/0/metrics.csv"], "metrics.csv is a file; expected a run folder"),
        (["outputz"], "there is no outputz"),
        (["outputs", "--output", "empty"], "--output empty is a folder"),
    ):
        done = run_here("t2ifb.report", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("t2ifb.report: ")
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
    assert run_here("t2ifb.report").returncode == 2


def test_what_cannot_be_written_ends_with_status_1(run_here: Command, runs: Path) -> None:
    done = run_here("t2ifb.report", "outputs", "--output", "outputs/shapes/refl/0/metrics.csv/report.html")
    assert done.returncode == 1
    assert "cannot be used as a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_runs_are_named_and_the_page_is_made(run_here: Command, runs: Path) -> None:
    (runs / "shapes" / "refl" / "0" / "summary.json").write_text("{")
    done = run_here("t2ifb.report", "outputs")
    assert done.returncode == 0
    assert done.stderr.startswith("0: summary.json: not valid JSON")


def test_help_has_examples(run_here: Command) -> None:
    done = run_here("t2ifb.report", "--help")
    assert done.returncode == 0
    assert "python -m t2ifb.report outputs/shapes" in done.stdout


def test_an_unreadable_folder_is_one_line_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied", "locked/runs")

    monkeypatch.setattr("t2ifb.reporting.discovery.find_runs", refuse)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "t2ifb.report: [Errno 13] Permission denied: 'locked/runs'\n"
