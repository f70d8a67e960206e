"""The page in a real browser."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.reporting.conftest import Visit
from tests.reporting.parts import EVIL, PROMPTS, write_evaluations, write_guidance, write_reward_run, write_tuning_run

Opener = Callable[..., Visit]
GOLD, REWARD = (f"[data-metric='tuning:val/{name}'] .plot" for name in ("gold", "reward"))


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    """Two values of beta, two of lr. The first has a comparison over guidance scales."""
    grid = [(beta, lr) for beta in (0.1, 1.0) for lr in (0.001, 0.002)]
    runs = [
        write_tuning_run(tmp_path / f"run{n}", beta=beta, lr=lr, base=int(lr > 0.001))
        for n, (beta, lr) in enumerate(grid)
    ]
    write_guidance(runs[0])
    return runs


def shown_rows(visit: Visit) -> list[str]:
    return visit.page.locator("#overview tbody tr:visible th").all_inner_texts()


def test_everything_is_drawn(visit: Opener, four: list[Path], tmp_path: Path) -> None:
    other = write_evaluations(tmp_path / "evaluations")
    seen = visit(*four, write_reward_run(tmp_path / "reward"), other / "table1", other / "figure8", offline=True)
    for section in ("guidance", "curves", "trade-offs", "parallel", "reward", "tables"):
        seen.draw(section)
    assert seen.page.locator("#curves .panel:visible").count() == 7
    assert len(seen.plot(GOLD)) == 4
    assert seen.plot(GOLD)[0]["x"][:4] == [0, 10, 20, 30]
    assert seen.page.locator("#curves .shapelayer path").count() >= 1  # the base model's line
    base, tuned = seen.plot("#guidance-plot")
    assert (base["x"], base["y"], tuned["y"][:2]) == ([1, 4], [0.1, 0.4], [0.1, 0.1])
    assert seen.page.locator("#guidance .key").inner_text().split() == ["run0", "run1", "run2", "run3"]
    assert [d["label"] for d in seen.plot("#parcoords")[0]["dimensions"]][:2] == ["beta", "lr"]
    assert seen.page.locator("#tables [data-intervals] .plot .main-svg").count() >= 2
    images = seen.page.locator("#images img")
    images.first.scroll_into_view_if_needed()
    assert images.count() == 6  # two base models, by their noise, and four runs
    assert seen.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.slow
def test_runs_are_filtered_chosen_and_searched_and_figures_chosen(visit: Opener, four: list[Path]) -> None:
    seen = visit(*four)
    seen.draw("curves")
    seen.page.locator("[data-setting='algorithm.beta'] input").first.uncheck()
    seen.settle()
    assert shown_rows(seen) == ["run2", "run3"]
    assert seen.page.locator("#count").inner_text() == "2 of 4 runs"
    assert {text.split(":")[0] for trace in seen.plot(GOLD) for text in trace["text"] if text} == {"run2", "run3"}
    assert seen.page.locator("#images figure:not(.base)").count() == 2
    seen.page.locator("[data-setting='optimizer.lr'] input").last.uncheck()
    seen.settle()
    assert shown_rows(seen) == ["run2"]
    seen.page.locator("#reset-filters").click()
    seen.settle()
    assert len(shown_rows(seen)) == 4
    seen.page.locator("#no-runs").click()
    seen.settle()
    assert shown_rows(seen) == []
    assert seen.page.locator("#curves .empty").is_visible()
    assert seen.page.locator("#gallery .empty").is_visible()
    seen.page.locator("#search").fill("BETA run3 0.002")
    assert seen.page.locator("#runs label:visible").count() == 1
    seen.page.locator("#all-runs").click()
    seen.settle()
    assert shown_rows(seen) == ["run3"]
    seen.page.locator("#no-metrics").click()
    seen.page.locator("#metrics input[value='tuning:train/loss']").check()
    seen.settle()
    assert seen.page.locator("#curves .panel:visible h3").all_inner_texts() == ["loss training"]


def test_many_values_are_filtered_by_a_range(visit: Opener, tmp_path: Path) -> None:
    seen = visit(*(write_tuning_run(tmp_path / f"{n:02d}", beta=n / 10, steps=(0, 10)) for n in range(14)))
    low, high = seen.page.locator("[data-setting='algorithm.beta'] input").all()
    low.fill("0.4")
    high.fill("0.6")
    seen.settle()
    assert shown_rows(seen) == ["04", "05", "06"]


@pytest.mark.slow
def test_the_pareto_front_holds_what_nothing_beats_and_controls_change_the_curves(
    visit: Opener, four: list[Path]
) -> None:
    seen = visit(*four)
    seen.draw("trade-offs")
    front, *runs = seen.plot("#judge-kl")
    points = [(x, y) for trace in runs for x, y in zip(trace["x"], trace["y"], strict=True) if x is not None]
    points.append((0, 0))  # the base model
    best = {(x, y) for x, y in points if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)}
    assert set(zip(front["x"], front["y"], strict=True)) == best
    seen.page.locator("#kl").select_option("kl_without_last_two")
    seen.settle()
    assert {x for trace in seen.plot("#judge-kl")[1:] for x in trace["x"]} - {None} == {x / 4 for x, _ in points}
    seen.page.locator("#points").select_option("last")
    seen.page.locator("#judge").select_option("gold")
    seen.settle()
    seen.settle()
    assert sum(x is not None for trace in seen.plot("#judge-kl")[1:] for x in trace["x"]) == 4
    assert "No point is better than the base model" in seen.page.locator("#front").inner_text()
    seen.draw("curves")
    raw = seen.plot(REWARD)[0]
    seen.page.locator("#x-axis").select_option("kl")
    seen.settle()
    assert seen.plot(REWARD)[1]["x"][:4] == [0, 20, 40, 60]
    assert seen.page.locator(f"{REWARD} .xtitle").text_content() == "KL, nats"
    seen.page.locator("#x-axis").select_option("kl_without_last_two")
    seen.settle()
    assert seen.plot(REWARD)[1]["x"][:4] == [0, 5, 10, 15]
    assert seen.page.locator(f"{REWARD} .xtitle").text_content() == "KL without the last two steps, nats"
    seen.page.locator("#no-metrics").click()
    seen.page.locator("#metrics input[value='tuning:train/loss']").check()
    seen.settle()
    title = seen.page.locator("[data-metric='tuning:train/loss'] .xtitle")
    assert title.text_content() == "KL of the trained steps, nats"
    seen.page.locator("#all-metrics").click()
    seen.page.locator("#x-axis").select_option("wall")
    seen.page.locator("#smoothing").fill("0.5")
    seen.settle()
    opacity = "points => points.map(point => Number(getComputedStyle(point).opacity))"
    assert set(seen.page.locator(f"{REWARD} .point").evaluate_all(opacity)) == {1}
    lines = [trace for trace in seen.plot(REWARD) if trace["mode"] == "lines"]
    assert lines[0]["x"][:4] == pytest.approx([0, 0.1, 0.2, 0.3])
    first, second, third = raw["y"][:3]
    half = (first + second) / 2
    assert lines[0]["y"][:3] == pytest.approx([first, half, (half + third) / 2])
    seen.page.locator("#color-by").select_option("algorithm.beta")
    seen.settle()
    assert len([trace for trace in seen.plot(REWARD) if trace["mode"] == "lines"]) == 2
    assert seen.page.locator("#curves .key").inner_text().split("\n")[0].startswith("beta 0.1")


def test_runs_with_different_judges_have_no_common_front(visit: Opener, four: list[Path]) -> None:
    for run, judges in zip(four, ("clip_score", "clip_score", "pick_score", "pick_score"), strict=True):
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"judge_weights": {judges: 1.0}}))
    seen = visit(*four)
    seen.draw("trade-offs")
    assert "No Pareto front: the judges" in seen.page.locator("#front").inner_text()
    assert not any(trace.get("name") == "front" for trace in seen.plot("#judge-kl"))
    assert "so judges is not comparable between them" in " ".join(seen.page.locator("#overview").inner_text().split())
    for box in seen.page.locator("#runs input").all()[2:]:
        box.uncheck()
    seen.settle()
    seen.settle()
    assert any(trace.get("name") == "front" for trace in seen.plot("#judge-kl"))


def with_setting(run: Path, name: str, value: object) -> Path:
    """The run, one setting of whose algorithm is another."""
    file = run / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["algorithm"][name] = value
    file.write_text(yaml.safe_dump(config))
    return run


def test_parallel_axes_tell_long_values_apart(visit: Opener, tmp_path: Path) -> None:
    values = ["<b> & </b>", "the same beginning, one", "the same beginning, two", "the same, but a longer ning, two"]
    seen = visit(*(with_setting(write_tuning_run(tmp_path / str(n)), "plan", text) for n, text in enumerate(values)))
    seen.draw("parallel")
    axis = seen.page.locator("#parcoords .y-axis", has_text="plan")
    ticks = axis.locator(".axis .tick").all()
    from_below = sorted(ticks, key=lambda tick: -tick.bounding_box()["y"])
    assert [tick.text_content() for tick in from_below] == [
        "<b> & </b>",
        "the sa…ng, one",
        "the sa…ng, two",
        "the sa…ng, two (2)",
    ]


@pytest.mark.slow
def test_a_run_without_a_number_is_not_drawn_at_zero(visit: Opener, tmp_path: Path) -> None:
    runs = [write_tuning_run(tmp_path / f"{n:02d}", beta=10.0 + n, steps=(0, 10)) for n in range(13)]
    seen = visit(*runs, with_setting(write_tuning_run(tmp_path / "none", steps=(0, 10)), "beta", None))
    seen.draw("parallel")
    (beta,) = [d for d in seen.plot("#parcoords")[0]["dimensions"] if d["label"] == "beta"]
    assert [beta["ticktext"][place] for place in beta["values"]] == [*(str(10 + n) for n in range(13)), "–"]


def test_the_slider_walks_a_prompt_through_training(visit: Opener, four: list[Path]) -> None:
    seen = visit(*four[:1])
    image = seen.page.locator("#images figure:not(.base) img")
    assert image.get_attribute("alt") == f"{PROMPTS[0]}: run0, step 30"
    sources = [image.get_attribute("src")]
    seen.page.locator("#step").focus()
    for step in (20, 10):
        seen.page.keyboard.press("ArrowLeft")
        assert seen.page.locator("#step-value").inner_text() == str(step)
        assert seen.page.locator("#step").get_attribute("aria-valuetext") == f"step {step}"
        sources.append(image.get_attribute("src"))
    assert len(set(sources)) == 3
    assert "kept" in seen.page.locator("#images figure:not(.base)").inner_text()
    seen.page.locator("#images").focus()
    seen.page.keyboard.press("ArrowLeft")
    base = seen.page.locator("#images .base img").get_attribute("src")
    assert image.get_attribute("src") == base
    seen.page.keyboard.press("ArrowRight")
    assert image.get_attribute("src") == sources[2]
    seen.page.locator("#prompt").select_option(label=PROMPTS[1])
    assert image.get_attribute("alt") == f"{PROMPTS[1]}: run0, step 10"
    assert image.evaluate("element => element.style.objectPosition").startswith("50%")
    assert "reward 0.100 (+0.000)" in seen.page.locator("#images figure:not(.base)").inner_text()


def test_runs_with_one_base_image_and_other_rewards_are_compared_with_their_own_base_score(
    visit: Opener, tmp_path: Path
) -> None:
    runs = [write_tuning_run(tmp_path / f"run{n}") for n in range(2)]
    for file in (runs[1] / "samples").glob("*.csv"):  # of a reward that gives 5 more
        lines = [line.split(",") for line in file.read_text().splitlines()]
        changed = [line if n == 0 else [line[0], str(float(line[1]) + 5), *line[2:]] for n, line in enumerate(lines)]
        file.write_text("".join(f"{','.join(line)}\n" for line in changed))
    seen = visit(*runs)
    captions = [" ".join(text.split()) for text in seen.page.locator("#images figcaption").all_inner_texts()]
    assert captions[0] == "base model"
    assert [text.partition("step 30 ")[2] for text in captions[1:]] == [
        "reward 0.000 (+0.000)",
        "reward 5.000 (+0.000)",
    ]
    seen.page.locator("#score").select_option(label="clip_score")
    assert seen.page.locator("#images .base").inner_text().split() == ["base", "model", "clip_score", "0.600"]


@pytest.mark.slow
def test_the_slider_keeps_its_step_while_no_run_is_chosen_and_tables_are_sorted_from_the_keyboard(
    visit: Opener, four: list[Path]
) -> None:
    seen = visit(*four)
    seen.page.locator("#step").fill("2")
    for button in ("#no-runs", "#all-runs"):
        seen.page.locator(button).click()
        seen.settle()
    assert seen.page.locator("#step-value").inner_text() == "20"
    assert seen.page.locator("#images img").last.get_attribute("alt").endswith("run3, step 20")
    heading = seen.page.locator("#overview thead button", has_text="reward")
    heading.focus()
    seen.page.keyboard.press("Enter")
    assert shown_rows(seen)[0] in ("run1", "run3")
    assert heading.locator("..").get_attribute("aria-sort") == "descending"
    seen.page.keyboard.press("Enter")
    assert shown_rows(seen)[0] in ("run0", "run2")
    assert heading.locator("..").get_attribute("aria-sort") == "ascending"


def test_everything_has_a_name_and_the_keyboard_reaches_it(visit: Opener, four: list[Path]) -> None:
    seen = visit(*four)
    named = "input, select, button, [role=img], [role=region], [role=group], output"
    nameless = f"""[...document.querySelectorAll("{named}")]
        .filter(e => !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim()))
        .map(e => e.outerHTML.slice(0, 120))"""
    seen.draw("trade-offs")
    assert seen.page.evaluate(nameless) == []
    assert seen.page.evaluate("[...document.images].every(image => image.alt)")
    seen.page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    seen.page.locator("#runs input").first.focus()
    seen.page.keyboard.press("Space")
    seen.settle()
    assert len(shown_rows(seen)) == 3
    assert seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_on_a_phone_nothing_scrolls_sideways_but_boxes_of_their_own(visit: Opener, four: list[Path]) -> None:
    seen = visit(*four, viewport={"width": 390, "height": 844})
    for section in ("guidance", "curves", "trade-offs", "parallel", "tables"):
        seen.page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        seen.settle()
    assert not seen.page.locator("#runs").is_visible()  # folded: the page begins with the runs
    seen.page.locator("#controls > summary").click()
    assert seen.page.locator("#runs").is_visible()
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 390
    wide = """[...document.querySelectorAll("body *")]
        .filter(e => e.getBoundingClientRect().right > 391 && !e.closest(".scroll") && !e.closest(".skip"))
        .map(e => e.outerHTML.slice(0, 120))"""
    assert seen.page.evaluate(wide) == []


def test_light_and_dark_follow_the_reader(visit: Opener, four: list[Path]) -> None:
    seen = visit(*four, color_scheme="dark")
    seen.draw("curves")
    look = f"""[getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector("{GOLD} .xtick text")).fill]"""
    dark = seen.page.evaluate(look)
    seen.page.emulate_media(color_scheme="light")
    seen.settle()
    seen.settle()
    light = seen.page.evaluate(look)
    brightness = [[sum(map(int, color[4:-1].split(","))) for color in colors] for colors in (dark, light)]
    assert brightness[0][0] < 150 < 500 < brightness[0][1]
    assert brightness[1][1] < 300 < 700 < brightness[1][0]


def test_a_script_in_a_prompt_or_a_name_stays_text(visit: Opener, tmp_path: Path) -> None:
    name = EVIL.replace("/", "|")
    folders = [write_tuning_run(tmp_path / name, prompts=[EVIL, "b"]), write_tuning_run(tmp_path / "usual", beta=0.5)]
    write_guidance(folders[0])
    figure8 = write_evaluations(tmp_path / "evaluations") / "figure8"
    text = (figure8 / "summary.json").read_text()
    (figure8 / "summary.json").write_text(text.replace('"A"', '"<b>bold</b> & <a href=1>"'))
    seen = visit(*folders, figure8)
    for section in ("guidance", "curves", "tables"):
        seen.draw(section)
    assert seen.page.evaluate("window.broken") is None
    assert EVIL in seen.page.locator("#prompt option").all_text_contents()
    assert seen.page.locator("#images img").last.get_attribute("alt").startswith(EVIL)
    assert any(name in row for row in shown_rows(seen))
    assert "<b>bold</b> & <a href=1>" in seen.page.locator("#tables .ytick text").all_text_contents()
    seen.page.evaluate("document.getElementById('curves').scrollIntoView()")
    seen.page.locator("#runs input").last.uncheck()  # both runs begin at the same point
    seen.settle()
    seen.page.locator(f"{GOLD} .point").first.hover(force=True)
    seen.page.wait_for_selector(f"{GOLD} .hovertext")
    assert name in seen.page.locator(f"{GOLD} .hovertext").first.text_content()


def test_no_tuning_run_at_all_is_a_page_too(visit: Opener, tmp_path: Path) -> None:
    seen = visit(*(write_reward_run(tmp_path / str(n), seed=n) for n in range(2)))
    seen.draw("reward")
    seen.page.locator("[data-setting='seed'] input").first.uncheck()
    seen.settle()
    assert seen.page.locator("#reward tbody tr:visible th").first.inner_text() == "1"
    other = visit(write_evaluations(tmp_path / "evaluations") / "table1")
    other.draw("tables")


def test_an_unfinished_run_and_one_without_anything_are_shown(visit: Opener, tmp_path: Path) -> None:
    begun, empty = write_tuning_run(tmp_path / "begun", finished=False), write_tuning_run(tmp_path / "empty")
    for file in [*empty.glob("*.csv"), *empty.glob("*.json"), *empty.glob("samples/*")]:
        file.unlink()
    seen = visit(begun, empty)
    for section in ("curves", "trade-offs", "parallel"):
        seen.draw(section)
    assert seen.page.locator("#overview .badge").count() == 2
    assert "empty: has no results yet" in seen.page.locator("#notes").inner_text()


@pytest.mark.slow
def test_a_hundred_runs_can_be_used(visit: Opener, tmp_path: Path) -> None:
    runs = [
        write_tuning_run(
            tmp_path / f"{n:03d}",
            **{"beta": 0.1 * (n % 5), "lr": 1e-4 * (1 + n // 5 % 4), "seed": n, "steps": range(0, 70, 10)},
        )
        for n in range(100)
    ]
    seen = visit(*runs)
    for section in ("curves", "trade-offs", "parallel"):
        seen.draw(section)
    assert len(seen.plot(GOLD)) <= 24  # runs that look alike share a trace
    assert seen.page.locator("#images figure:not(.base)").count() == 24
    seen.page.locator("#more-images").click()
    assert seen.page.locator("#images figure:not(.base)").count() == 100
    seen.page.locator("[data-setting='algorithm.beta'] input").first.uncheck()
    seen.settle()
    assert len(shown_rows(seen)) == 80


VISIBLE = """[...document.querySelectorAll("#curves .modebar-group")]
    .filter(group => group.checkVisibility({ opacityProperty: true })).length"""


@pytest.mark.parametrize(
    "context", [{}, {"has_touch": True, "is_mobile": True, "viewport": {"width": 400, "height": 800}}]
)
def test_the_toolbar_lies_over_curves_only_under_the_mouse(
    visit: Opener, four: list[Path], context: dict[str, Any]
) -> None:
    seen = visit(*four, **context)
    seen.draw("curves")
    assert seen.page.evaluate(VISIBLE) == 0
    if not context:
        seen.page.locator(GOLD).hover()
        seen.page.wait_for_function(f"{VISIBLE} > 0")
