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
    back = variables(theme)["back"]
    palette = json.loads(re.search(rf'{theme}: (\["#.*?\])', script)[1])
    ramp = json.loads(re.search(rf"{theme}: (\[\[.*?\]\])", script)[1])
    for color in [*palette, *("#" + "".join(f"{part:02x}" for part in stop) for stop in ramp)]:
        assert contrast(color, back) >= 3, color
