"""`python -m t2ifb.report`: one HTML file that compares runs."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from t2ifb.config.command import BAD_INPUT, FAILED, INTERRUPTED, speak_unicode
from t2ifb.config.errors import missing_file

EPILOGUE = """\
Examples
  python -m t2ifb.report outputs/shapes
  python -m t2ifb.report outputs/shapes/refl outputs/shapes/reward_mlp/TIME --output comparison.html
  python -m t2ifb.report sweeps/a sweeps/b --title "beta and learning rate"

The page opens from disk, in any browser, and fetches nothing; it can be sent as it is. Runs that are not finished
are shown as far as they are. T2IFB_TRACEBACK=1 shows the traceback of an error.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the page and say where it is; exit status as of every command: 2 for bad input, 1 for a failure."""
    speak_unicode()
    try:
        sys.exit(_run(_parser().parse_args(arguments)))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2ifb.report",
        description="One self-contained HTML file that compares runs: curves, trade-offs, images, tables, settings.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "a run's folder, or one that contains runs at any depth"
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help=what)
    where = "the file to write; default: report.html in the nearest folder that contains all runs"
    parser.add_argument("--output", metavar="FILE", type=Path, help=where)
    parser.add_argument("--title", help="of the page; default: how many runs it compares")
    return parser


def _run(options: argparse.Namespace) -> int:
    from t2ifb.reporting.discovery import common_parent, find_runs

    try:
        folders = find_runs(options.folders)
        output = options.output or common_parent(folders) / "report.html"
        if output.is_dir():
            raise ValueError(f"--output {output} is a folder; expected a file, such as {output / 'report.html'}")
    except FileNotFoundError as error:
        return _report(missing_file(Path(error.filename)), BAD_INPUT, error)
    except ValueError as error:
        return _report(str(error), BAD_INPUT, error)
    except OSError as error:
        return _report(str(error), FAILED, error)
    try:
        return _write(folders, output, options.title)
    except OSError as error:
        return _report(str(error), FAILED, error)


def _write(folders: Sequence[Path], output: Path, title: str | None) -> int:
    from t2ifb.reporting.page import LIMIT, MEGABYTE, make_page
    from t2ifb.utils.files import atomic_write

    page = make_page(folders, title)
    with atomic_write(output) as file:
        file.write(page.html)
    for name, notes in page.notes.items():
        more = f" (and {len(notes) - 1} more, all on the page)" if len(notes) > 1 else ""
        print(f"{name}: {notes[0]}{more}", file=sys.stderr)
    if len(page.html) > LIMIT:
        print(f"larger than {LIMIT // MEGABYTE} MB: give fewer runs for a page that opens fast", file=sys.stderr)
    runs = f"{page.runs} run{'s' if page.runs != 1 else ''}"
    print(f"{runs}, {len(page.html) / MEGABYTE:.1f} MB: {output}")
    return 0


def _report(text: str, status: int, error: Exception) -> int:
    if os.environ.get("T2IFB_TRACEBACK") == "1":
        traceback.print_exception(error)
    print(f"t2ifb.report: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
