"""The annotators' page in a browser."""

import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2ifb.annotation.answers import FILE, AnswerLog, read_lines
from t2ifb.annotation.items import read_items
from t2ifb.annotation.queues import Queues
from t2ifb.annotation.results import summarise
from t2ifb.data.datasets.own_rankings import OwnRankings
from tests.annotation.parts import EVIL, make_queues, write_generated
from tests.annotation.test_kill import start
from tests.annotation.test_simulation import served
from tests.conftest import Command


class Seat:
    """An annotator at the page."""

    def __init__(self, browser: Any, address: str, name: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.locator("#name").fill(name)
        self.page.locator("#login button").click()
        self.page.locator("#prompt").wait_for()

    def done(self, count: int) -> None:
        """Wait until a number of answers is on the page."""
        self.page.locator("#status", has_text=f": {count} done").wait_for()


@pytest.fixture
def seats() -> Iterator[list[Seat]]:
    opened: list[Seat] = []
    yield opened
    for seat in opened:
        assert seat.errors == []
        assert seat.page.title() == "Which image is better?"
        seat.context.close()


def test_images_are_ranked_by_keys_clicks_and_dragging(browser: Any, tmp_path: Path, seats: list[Seat]) -> None:
    queues = make_queues(tmp_path, 4)
    with served(queues) as address:
        seat = Seat(browser, address, "ada")
        seats.append(seat)
        page = seat.page
        assert page.locator("#tray .card").count() == 4
        assert page.locator("#tray img").first.get_attribute("alt", timeout=1000).startswith("image 1 of 4 for: ")
        assert page.locator("#send").is_disabled()
        places = [int(card.get_attribute("data-place")) for card in page.locator("#tray .card").all()]
        page.keyboard.press("2")
        page.keyboard.press("1")
        page.keyboard.press("=")
        page.keyboard.press("4")
        page.keyboard.press("3")
        page.keyboard.press("Enter")
        seat.done(1)
        answer = queues.log.answers[0]
        assert [answer.ranks[place] for place in places] == [2, 1, 4, 2]
        for number in (4, 3, 2, 1):
            page.get_by_label(f"place image {number} next").click()
        page.locator("#tray img").first.click()
        page.keyboard.press("Escape")
        page.locator("#large").wait_for(state="hidden")
        page.keyboard.press("Enter")  # sends, and presses none of the buttons that were clicked
        seat.done(2)
        places = [int(card.get_attribute("data-place")) for card in page.locator("#tray .card").all()]
        for place in places:
            page.locator(f"#tray [data-place='{place}'] .grip").hover()
            page.mouse.down()
            page.locator("#ranking .gap").first.hover()  # each before the last
            page.mouse.up()
        page.locator("#send").click()
        seat.done(3)
        assert [queues.log.answers[2].ranks[place] for place in places] == [4, 3, 2, 1]
        page.locator("#tray img").first.click()
        assert page.locator("#large").is_visible()
        page.locator("#close").click()
        page.keyboard.press("u")
        seat.done(2)
        page.keyboard.press("s")
        seat.done(3)
        page.keyboard.press("b")
        page.locator("#end").wait_for()
    assert [answer.kind for answer in queues.log.answers] == ["ranks", "ranks", "ranks", "undone", "skip", "all bad"]


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}


@pytest.mark.parametrize("device", [{"viewport": {"width": 1280, "height": 800}}, PHONE])
def test_nothing_moves_while_images_are_placed_and_rated(
    browser: Any, tmp_path: Path, seats: list[Seat], device: dict[str, Any]
) -> None:
    queues = make_queues(tmp_path, 2)
    with served(queues, ratings=True) as address:
        seat = Seat(browser, address, "ada", **device)
        seats.append(seat)
        page = seat.page

        def boxes(selector: str) -> list[Any]:
            return [each.bounding_box() for each in page.locator(selector).all()]

        def layout() -> list[Any]:
            """Images on the page, wherever it is scrolled to, and buttons from left to right."""
            top = page.evaluate("scrollY")
            images = [(box["x"], box["y"] + top, box["width"], box["height"]) for box in boxes("#tray .card")]
            return [*images, *((box["x"], box["width"]) for box in boxes("#actions button"))]

        places = [int(card.get_attribute("data-place")) for card in page.locator("#tray .card").all()]
        before, actions = layout(), boxes("#actions button")
        assert before[0][1] == before[1][1]  # at least two beside each other
        assert len({box["y"] for box in actions}) == 1  # one row
        assert actions[0]["y"] + actions[0]["height"] <= device["viewport"]["height"]  # in sight
        page.get_by_label("fidelity of image 3, 1 (worst) to 7 (best)").select_option("6")
        for number in (3, 1):
            page.get_by_label(f"place image {number} next").click()
            assert layout() == before
        page.locator("#tie").click()
        assert page.locator("#tie").get_attribute("aria-pressed") == "true"
        page.get_by_label("place image 2 next").click()
        assert page.locator("#tray .badge").all_inner_texts() == ["rank 2", "rank 2", "rank 1", ""]
        assert page.locator("#ranking .title").all_inner_texts() == ["rank 1", "rank 2, tied"]
        assert page.locator("#ranking .number").all_inner_texts() == ["3", "1", "2"]
        page.get_by_label("remove image 2 from the ranking").click()
        assert page.locator("#ranking .title").all_inner_texts() == ["rank 1", "rank 2"]
        page.get_by_label("place image 4 next").click()
        page.get_by_label("place image 2 next").click()
        assert layout() == before
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("#tray .picture").nth(1).focus()
        page.keyboard.press("Enter")
        assert page.locator("#large").is_visible()
        page.keyboard.press("Escape")
        page.locator("#send").click()
        seat.done(1)
        (answer,) = queues.log.answers
        assert [answer.ranks[place] for place in places] == [2, 4, 1, 3]
        assert [answer.ratings[place] for place in places] == [{}, {}, {"fidelity": 6}, {}]


IN_SIGHT = """(() => { const gap = document.querySelector("#ranking .gap").getBoundingClientRect();
  return gap.bottom < document.querySelector("#actions").getBoundingClientRect().top; })()"""
"""Whether the place for the first image can be seen."""


class Finger:
    """A finger on the screen of a phone."""

    def __init__(self, page: Any) -> None:
        self.session, self.page = page.context.new_cdp_session(page), page

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """Send one touch event with the fingers at points."""
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def middle(self, selector: str) -> tuple[float, float]:
        box = self.page.locator(selector).first.bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_images_are_ranked_by_touch(browser: Any, tmp_path: Path, seats: list[Seat]) -> None:
    queues = make_queues(tmp_path, 2)
    with served(queues) as address:
        seat = Seat(browser, address, "ada", **PHONE)
        seats.append(seat)
        page = seat.page
        finger = Finger(page)
        places = [int(card.get_attribute("data-place")) for card in page.locator("#tray .card").all()]

        page.wait_for_function("[...document.images].every((image) => image.complete)")  # images that come later move

        def drag(place: int, end: str, *others: tuple[float, float]) -> None:
            page.locator("#ranking .gap").first.scroll_into_view_if_needed()
            top = page.evaluate("scrollY")
            at = finger.middle(f"#tray [data-place='{place}'] .grip")
            to = finger.middle("#ranking .gap")
            finger.touch("touchStart", at)
            finger.touch("touchMove", ((at[0] + to[0]) / 2, (at[1] + to[1]) / 2), *others)
            finger.touch("touchMove", to, *others)
            assert page.locator(".dragged").count() == 1
            assert page.evaluate("scrollY") == top
            finger.touch(end)
            page.wait_for_function("!document.querySelector('.dragged, .target')")

        drag(places[0], "touchCancel")  # such as a call
        assert page.locator("#ranking .number").count() == 0
        drag(places[0], "touchEnd")
        drag(places[1], "touchEnd", (5.0, 5.0))  # the other hand holds the phone
        assert page.locator("#ranking .number").all_inner_texts() == ["2", "1"]
        for place in places[2:]:
            drag(place, "touchEnd")
        page.locator("#send").tap()
        seat.done(1)
        page.set_viewport_size({"width": 390, "height": 500})
        page.evaluate("scrollTo(0, 0)")
        finger.touch("touchStart", finger.middle("#tray .grip"))
        assert not page.evaluate(IN_SIGHT)
        for move in range(100):
            finger.touch("touchMove", (200 + move % 2, 490))
            if page.evaluate(IN_SIGHT):
                break
        finger.touch("touchMove", finger.middle("#ranking .gap"))
        finger.touch("touchEnd")
        assert page.locator("#ranking .number").all_inner_texts() == ["1"]
    (answer,) = queues.log.answers
    assert [answer.ranks[place] for place in places] == [4, 3, 2, 1]


@pytest.mark.slow
def test_two_annotators_compare_on_phones_in_the_dark(browser: Any, tmp_path: Path, seats: list[Seat]) -> None:
    items = read_items(write_generated(tmp_path, 3, copies=1), "compare")
    queues = Queues(items, AnswerLog(tmp_path / "annotations", items), overlap=1.0)
    phone = PHONE | {"viewport": {"width": 375, "height": 700}}
    with served(queues, mode="compare") as address:
        seats += [Seat(browser, address, name, **phone) for name in ("ada", "bob")]
        prompts = set()
        for count in range(3):
            for seat in seats:
                page = seat.page
                prompts.add(page.locator("#prompt").inner_text())
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                tops = [card.bounding_box()["y"] for card in page.locator("#tray .card").all()]
                assert len(tops) == 2 and tops[0] == tops[1]  # side by side
                buttons = [button.bounding_box()["y"] for button in page.locator("#actions button").all()]
                assert [buttons.count(y) for y in dict.fromkeys(buttons)] == [3, 3]  # the answers in one row
                assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 23, 26)"
                page.locator("#tie" if count == 0 else "#left").tap()
                if count < 2:
                    seat.done(count + 1)
                else:
                    page.locator("#end").wait_for()
        assert " ".join(EVIL.split()) in {" ".join(prompt.split()) for prompt in prompts}
    assert len(queues.log.current()) == 6
    assert sorted({answer.ranks for answer in queues.log.answers}) in ([(1, 1), (1, 2)], [(1, 1), (1, 2), (2, 1)])


def test_a_held_key_and_a_double_click_answer_one_question(browser: Any, tmp_path: Path, seats: list[Seat]) -> None:
    items = read_items(write_generated(tmp_path, 5, copies=1), "compare")
    queues = Queues(items, AnswerLog(tmp_path / "annotations", items))
    with served(queues, mode="compare") as address:
        seats.append(Seat(browser, address, "ada"))
        page = seats[0].page

        def ranks() -> list[int]:
            """Ranks of the left and the right image, by the newest answer."""
            return [queues.log.answers[-1].ranks[place] for place in shown]

        def places() -> list[int]:
            return [int(card.get_attribute("data-place")) for card in page.locator("#tray .card").all()]

        shown = places()
        page.keyboard.down("ArrowLeft")
        seats[0].done(1)
        assert ranks() == [1, 2]
        shown = places()
        page.keyboard.down("ArrowLeft")  # the browser repeats a held key
        page.keyboard.up("ArrowLeft")
        page.locator("#left").click(click_count=2, delay=50)
        seats[0].done(2)
        assert ranks() == [1, 2]
        for count, act in enumerate((page.locator("#right").click, lambda: page.keyboard.press("ArrowRight")), 3):
            shown = places()
            act()
            seats[0].done(count)
            assert ranks() == [2, 1]
        page.keyboard.press("ArrowDown")
        page.locator("#end").wait_for()
        assert ranks() == [1, 1]
    assert len(queues.log.answers) == 5


def test_clicks_become_the_share_in_which_the_tuned_model_is_preferred(
    browser: Any, tmp_path: Path, seats: list[Seat]
) -> None:
    items = read_items(write_generated(tmp_path, 4, copies=1), "compare")
    queues = Queues(items, AnswerLog(tmp_path / "annotations", items))
    with served(queues, mode="compare") as address:
        seats.append(Seat(browser, address, "ada"))
        page = seats[0].page
        for count in range(1, 5):
            sources = [image.get_attribute("src") for image in page.locator("#tray img").all()]
            _, key, place = sources[0].split("/")
            tuned = queues.find(key).models[int(place)] == "tuned"
            page.locator("#left" if tuned == (count < 4) else "#right").click()  # three of four times the tuned one
            if count < 4:
                seats[0].done(count)
        page.locator("#end").wait_for()
    assert summarise(queues.log.current(), items).verdicts["tuned"].mean == 0.75


@pytest.mark.slow
def test_a_thousand_prompts_and_a_killed_server(browser: Any, tmp_path: Path, seats: list[Seat]) -> None:
    folder = write_generated(tmp_path / "images", 1000, copies=1)
    process, address = start(folder)
    seats += [Seat(browser, address, name) for name in ("ada", "bob")]
    ada, bob = (seat.page for seat in seats)

    def answer(page: Any) -> None:
        page.locator("body").press("2")
        page.locator("body").press("1")
        page.locator("body").press("Enter")

    for count in range(1, 4):
        for seat in seats:
            answer(seat.page)
            seat.done(count)
    ada.locator("#status", has_text="3 done, 995 left").wait_for()  # when bob had answered two
    process.send_signal(signal.SIGKILL)
    process.wait()
    answer(ada)
    ada.locator("#error", has_text="The server cannot be reached. Nothing is lost; try again.").wait_for()
    process, _ = start(folder, int(address.rpartition(":")[2]))
    assert [error for error in seats[0].errors if "ERR_CONNECTION" not in error] == []
    seats[0].errors.clear()  # the browser's own message
    ada.locator("#send").click()
    seats[0].done(4)
    assert ada.locator("#error").is_hidden()
    answer(bob)
    seats[1].done(4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = read_lines(folder / "annotations" / FILE)
    assert sorted(row["annotator"] for row in rows) == ["ada"] * 4 + ["bob"] * 4
    assert len({row["prompt_id"] for row in rows}) == 8


@pytest.mark.slow
def test_a_reward_is_trained_on_twenty_prompts_that_were_ranked_on_the_page(
    browser: Any, run_here: Command, tmp_path: Path, seats: list[Seat]
) -> None:
    """From images of the base model to a table with the new reward in it; the server is a process of its own."""
    few = ("most=20", "images_per_prompt=3", "sampling.num_inference_steps=2", "device=cpu")
    drawn = run_here("t2ifb.annotate", "split=train", *few, "output=mine", "serve=false")
    assert drawn.returncode == 0, drawn.stderr
    folder = tmp_path / "mine" / "images"
    files = {file.read_bytes(): file for file in folder.rglob("*.png")}
    assert len(files) == 20 * 3  # all differ
    process, address = start(folder)
    seats.append(Seat(browser, address, "ada"))
    page = seats[0].page
    clicked: dict[str, dict[Path, int]] = {}
    for count in range(1, 21):
        images = page.locator("#tray img").all()
        widths = [image.evaluate("image => image.decode().then(() => image.naturalWidth)") for image in images]
        assert widths == [64, 64, 64]
        sources = [f"{address}/{image.get_attribute('src')}" for image in images]
        shown = [files[seats[0].context.request.get(source).body()] for source in sources]
        best, middle, worst = sorted(shown)
        tied = count % 4 == 0
        for file in (best, middle, worst):
            if tied and file == worst:
                page.locator("#tie").click()
            page.get_by_label(f"place image {shown.index(file) + 1} next").click()
        clicked[page.locator("#prompt").inner_text()] = {best: 1, middle: 2, worst: 2 if tied else 3}
        page.locator("#send").click()
        if count < 20:
            seats[0].done(count)
    page.locator("#end", has_text="20 ranked").wait_for()
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    printed = process.stdout.read()
    process.wait()

    answers = folder / "annotations"
    rows = read_lines(answers / FILE)
    assert [row["answer"] for row in rows] == ["ranks"] * 20
    assert clicked == {
        row["prompt"]: {
            (answers / name).resolve(): rank for name, rank in zip(row["images"], row["ranks"], strict=True)
        }
        for row in rows
    }

    (line,) = [line for line in printed.splitlines() if line.startswith("train a reward on them: python -m ")]
    module, experiment, *data = shlex.split(line.partition(" -m ")[2])
    assert (module, experiment) == ("t2ifb.train", "+experiment=reward_mlp")
    trained = run_here(module, experiment, *data, "algorithm.epochs=2", "logger=none")
    assert trained.returncode == 0, trained.stderr
    (run,) = (tmp_path / "outputs" / "shapes" / "reward_mlp").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    mine = {ranking.prompt for ranking in OwnRankings(answers).rankings("train")}
    different = [len(set(ranks.values())) for prompt, ranks in clicked.items() if prompt in mine]
    assert summary["data"]["comparisons"] == sum(different)  # three of three ranks, two of two
    assert {"random", "this model"} <= summary["test/table"].keys()

    table = run_here("t2ifb.evaluate", "+experiment=table1", *data, "device=cpu")
    assert table.returncode == 0, table.stderr
    assert "reward model" in table.stdout
    (file,) = (tmp_path / "outputs" / "shapes" / "table1").glob("*/summary.json")
    found = json.loads(file.read_text())
    assert found["sources"]["reward_model"] == str(run)
    assert found["data"] == summary["data"]["splits"]["test"]
    assert found["table"]["reward model"] == pytest.approx(summary["test/accuracy"], abs=0.1)
