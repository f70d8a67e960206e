"""What the studies' tests share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure


class Drawn:
    """What the latest figure that was saved shows."""

    figure: Figure

    def numbers(self) -> set[float]:
        """Coordinates of all lines and cells of all images, to eight decimals."""
        parts = [part for axes in self.figure.axes for line in axes.lines for part in line.get_data(orig=False)]
        parts += [image.get_array().compressed() for axes in self.figure.axes for image in axes.images]
        return set(np.round(np.concatenate([np.ravel(part) for part in parts]), 8).tolist())

    def shows(self, *values: float) -> bool:
        """Whether all values are drawn, as they are or in percent."""
        numbers = self.numbers()
        return all({round(value, 8), round(100 * value, 8)} & numbers for value in values)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figure that a test's study writes."""
    found, save = Drawn(), Figure.savefig

    def kept(figure: Figure, file: Path, **options: Any) -> None:
        found.figure = figure
        save(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return found
