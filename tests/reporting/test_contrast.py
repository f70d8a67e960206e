"""Colours of the page against its background, by the formula of WCAG 2."""

import json
import re
from importlib.resources import files

import pytest

PAGE = files("t2ifb.reporting").joinpath("page")


def luminance(color: str) -> float:
    parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def mixed(color: str, back: str, opacity: float) -> str:
    parts = [[int(each[n : n + 2], 16) for n in (1, 3, 5)] for each in (color, back)]
    return "#" + "".join(f"{round(opacity * a + (1 - opacity) * b):02x}" for a, b in zip(*parts, strict=True))


def faintest() -> float:
    """The lowest opacity of anything drawn, but for the lines that a reader has put aside."""
    scripts = "".join(file.read_text() for file in PAGE.iterdir() if file.name.endswith(".js"))
    drawn = re.sub(r"unselected: \{.*?\}", "", scripts)
    given = " ".join(re.findall(r"opacity: ([^,}]*)", drawn))
    return min(map(float, re.findall(r"[\d.]+", given)), default=1.0)


def variables(theme: str) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", PAGE.joinpath("page.css").read_text(), re.DOTALL)
    return dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[("light", "dark").index(theme)]))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(theme: str) -> None:
    colors = variables(theme)
    for text in ("text", "muted", "accent"):
        for back in ("back", "panel"):
            assert contrast(colors[text], colors[back]) >= 4.5, (text, back)
    assert contrast(colors["warn"], colors["warn-back"]) >= 4.5
    assert contrast(colors["text"], colors["warn-back"]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_can_be_seen(theme: str) -> None:
    script = PAGE.joinpath("state.js").read_text()
    gray = re.search(rf'GRAY = .*?{theme}: "(#\w+)"', script)[1]
    palette = json.loads(re.search(rf'{theme}: (\["#.*?\])', script)[1])
    ramp = json.loads(re.search(rf"{theme}: (\[\[.*?\]\])", script)[1])
    for color in [gray, *palette, *("#" + "".join(f"{part:02x}" for part in stop) for stop in ramp)]:
        for back in (variables(theme)[name] for name in ("back", "panel")):
            assert contrast(mixed(color, back, faintest()), back) >= 3, color
