"""Figures as they are when they are written."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from t2ifb.evaluation import plots, tuning_plots


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that were written, by the names of their files."""
    written: dict[str, Figure] = {}
    save = plots.save

    def kept(figure: Figure, path: Path) -> None:
        save(figure, path)
        written[path.name] = figure

    for module in (plots, tuning_plots):
        monkeypatch.setattr(module, "save", kept)
    return written
