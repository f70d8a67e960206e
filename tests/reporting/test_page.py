import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from t2ifb.reporting.page import LIMIT, embedded, make_page
from tests.reporting.parts import EVIL, PROMPTS, write_evaluations, write_guidance, write_reward_run, write_tuning_run


class Elements(HTMLParser):
    """The elements of a page, and the text of each script and title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open, []).append(data)


def page_of(*folders: Path, **options: object) -> Elements:
    return Elements(make_page(folders, **options).html.decode())  # type: ignore[arg-type]


def data_of(page: Elements) -> dict:
    return json.loads(page.texts["script"][0])


def test_texts_cannot_break_out_of_the_data() -> None:
    text = embedded([EVIL, "\u2028 \ud800"])
    assert not re.search("[<>&]", text)
    assert json.loads(text) == [EVIL, "\u2028 \ud800"]
    with pytest.raises(ValueError, match="JSON"):
        embedded(float("nan"))


def test_prompts_names_and_settings_are_text(tmp_path: Path) -> None:
    folder = write_tuning_run(tmp_path / EVIL.replace("/", "|"), prompts=[EVIL, "b"])
    summary = json.loads((folder / "summary.json").read_text()) | {"sentence": EVIL}
    (folder / "summary.json").write_text(json.dumps(summary))
    config = (folder / ".hydra" / "config.yaml").read_text()
    (folder / ".hydra" / "config.yaml").write_text(config.replace("shapes", json.dumps(EVIL)))
    evil, usual = page_of(folder, title=EVIL), page_of(write_tuning_run(tmp_path / "usual", prompts=["a", "b"]))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in usual.tags]  # no element more
    assert data_of(evil)["prompts"] == [EVIL, "b"]
    assert evil.texts["title"] == [EVIL]
    assert EVIL in evil.texts["option"]


def test_the_page_holds_everything_and_names_nothing_to_fetch(tmp_path: Path) -> None:
    page = page_of(write_tuning_run(tmp_path / "a"), write_reward_run(tmp_path / "b"))
    attributes = dict(page.tags)
    assert attributes["html"]["lang"] == "en"
    assert page.texts["title"] == ["2 runs compared"]
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#")), (tag, attrs)
    assert len(data_of(page)["images"]) == 4


def test_data_is_what_was_read(tmp_path: Path) -> None:
    runs = [write_tuning_run(tmp_path / str(n), beta=beta, seed=7) for n, beta in enumerate((0.5, 0.1))]
    data = data_of(page_of(*runs))
    assert [run["name"] for run in data["runs"]] == ["0", "1"]
    assert [run["about"] for run in data["runs"]] == ["beta 0.5", "beta 0.1"]
    (setting,) = data["settings"]
    assert [value["value"] for value in setting["values"]] == [0.1, 0.5]
    assert [run["settings"] for run in data["runs"]] == [{"algorithm.beta": 1}, {"algorithm.beta": 0}]
    assert data["runs"][0]["val"]["columns"]["gold"] == [0.7, 0.695, 0.69, 0.685]
    assert data["prompts"] == list(PROMPTS)
    assert data["judges"] == ["judges", "gold", "clip_score"]
    assert len(data["images"]) == 4  # all images of the two are the same


def test_broken_and_empty_runs_are_named_on_the_page(tmp_path: Path) -> None:
    broken, empty = write_tuning_run(tmp_path / "broken"), tmp_path / "empty"
    (broken / "summary.json").write_text("{")
    (empty / ".hydra").mkdir(parents=True)
    page = make_page([broken, empty])
    assert list(page.notes) == ["broken", "empty"]
    assert "has no results yet" in page.notes["empty"]
    assert "summary.json: not valid JSON" in page.html.decode()


def test_tables_and_figure_8_have_their_sections(tmp_path: Path) -> None:
    folder = write_evaluations(tmp_path)
    page = page_of(folder / "table1", folder / "figure8")
    assert any("Table 1: table1" in text for text in page.texts["h3"])
    assert any("Figure 8: figure8" in text for text in page.texts["h3"])
    panels = data_of(page)["intervals"]
    assert panels["0"][0]["lines"] == [{"label": "CLIP Score", "mean": 67, "low": 65, "high": 69}]
    assert [panel["title"] for panel in panels["1"]] == ["gold", "reward"]
    assert [line["trained_on"] for line in panels["1"][1]["lines"]] == [True, True]


def test_the_comparison_at_the_best_guidance_scales_has_a_table_where_a_run_has_one(tmp_path: Path) -> None:
    run = write_tuning_run(tmp_path / "run")
    title = "Kept checkpoint minus base model, each at its best guidance scale, on test prompts"
    assert title not in page_of(run).texts["h3"]
    (run / "table_kept_best_guidance.json").write_text((run / "table_kept.json").read_text())
    page = page_of(run)
    assert title in page.texts["h3"]
    assert "kept checkpoint of run, each model at its best guidance scale" in page.texts["caption"]


def test_the_gain_over_guidance_scales_is_a_chart_and_a_table(tmp_path: Path) -> None:
    run = write_tuning_run(tmp_path / "run")
    assert "Guidance" not in page_of(run).texts["h2"] and data_of(page_of(run))["swept"] == []
    write_guidance(run, {"name": "broken"})
    page = page_of(run)
    data = data_of(page)
    assert data["swept"] == ["gold", "clip_score"] and "Guidance" in page.texts["h2"]
    assert data["runs"][0]["guidance"]["gold"] == {"scale": [1, 4], "base": [0.1, 0.4], "tuned": [0.1, 0.1]}
    assert "By guidance scale: run" in page.texts["summary"]
    (notes,) = make_page([run]).notes.values()
    assert "guidance_scales.json: an entry has an unexpected form" in notes[0]


def test_small_kl_divergences_are_told_apart(tmp_path: Path) -> None:
    page = page_of(*(write_tuning_run(tmp_path / str(n), lr=lr) for n, lr in enumerate((1.2e-7, 3.4e-7))))
    for kl in (0.0012, 0.0034):
        assert f"{kl:g}" in page.texts["td"]
        assert any(abs(float(attributes.get("data-sort") or 0) - kl) < 1e-9 for tag, attributes in page.tags)


def test_steps_are_whole_numbers(tmp_path: Path) -> None:
    page = page_of(write_tuning_run(tmp_path / "run", steps=(0, 1234567)))
    assert "1234567" in page.texts["td"]


def test_both_sums_of_the_kl_are_on_the_page(tmp_path: Path) -> None:
    page = page_of(write_tuning_run(tmp_path / "run"))
    data = data_of(page)
    assert data["runs"][0]["val"]["columns"]["kl_without_last_two"] == [0, 2.5, 5, 7.5]
    assert data["runs"][0]["changes"]["kl"] == 10 and data["runs"][0]["changes"]["kl_without_last_two"] == 2.5
    assert not {"kl", "kl_without_last_two"} & set(data["judges"])
    values = [attributes.get("value") for tag, attributes in page.tags if tag == "option"]
    assert values.count("kl_without_last_two") == 2  # of the curves' axis, and of the trade-offs


def test_the_page_keeps_within_its_limit(tmp_path: Path) -> None:
    runs = [write_tuning_run(tmp_path / str(n), seed=n, size=96, noise=True) for n in range(4)]
    free = make_page(runs)
    less = make_page(runs, limit=len(free.html) - 100_000)
    assert len(less.html) <= len(free.html) - 100_000
    assert data_of(Elements(less.html.decode()))["images"]


@pytest.mark.slow
def test_a_hundred_runs_stay_below_forty_megabytes(tmp_path: Path) -> None:
    runs = [
        write_tuning_run(
            tmp_path / f"{n:03d}",
            **{"beta": 0.1 * (n % 5), "lr": 1e-4 * (1 + n % 4), "seed": n, "steps": range(0, 70, 10)},
            **{"prompts": [f"prompt {k}" for k in range(8)], "size": 128, "noise": True},
        )
        for n in range(100)
    ]
    page = make_page(runs)
    print(f"{len(page.html) / 1e6:.1f} MB")
    assert len(page.html) < LIMIT
    assert len(data_of(Elements(page.html.decode()))["images"]) >= 100
