"""The server: what it answers, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from t2ifb.annotation.answers import AnswerLog
from t2ifb.annotation.items import read_items
from t2ifb.annotation.queues import Queues
from t2ifb.annotation.server import LARGEST_REQUEST, make_app
from tests.annotation.parts import EVIL, best_first, make_queues, write_generated
from tests.data.parts import encoded_picture

HERE = "http://127.0.0.1:8765"


def client(queues: Queues, base_url: str = HERE, **settings: Any) -> TestClient:
    return TestClient(make_app(queues, **settings), base_url=base_url)


def ranked(queues: Queues, state: dict[str, Any], name: str = "ada", **more: Any) -> dict[str, Any]:
    key = state["item"]["key"]
    return {"annotator": name, "item": key, "answer": "ranks", "ranks": best_first(queues.find(key)), **more}


def test_questions_are_answered_until_there_are_none_left(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 2)
    page = client(queues, port=8765, ratings=True, results=lambda: {"answers of ada": "2 ranks"})
    state = page.get("/api/next?annotator=ada").json()
    assert (state["mode"], state["ratings"], state["done"], state["left"]) == ("rank", True, 0, 2)
    assert sorted(image["place"] for image in state["item"]["images"]) == [0, 1, 2, 3]
    image = page.get("/" + state["item"]["images"][0]["url"])
    shown = queues.find(state["item"]["key"]).images[state["item"]["images"][0]["place"]]
    assert (image.content, image.headers["content-type"]) == (shown.read_bytes(), "image/png")
    assert image.headers["cache-control"] == "no-store"  # another source may have another image at this address
    state = page.post("/api/answer", json=ranked(queues, state, seconds=4)).json()
    assert (state["done"], state["seconds_left"]) == (1, 4.0)
    assert len(queues.log.path.read_text().splitlines()) == 1
    end = page.post("/api/answer", json=ranked(queues, state)).json()
    assert end["item"] is None and end["results"] == {"answers of ada": "2 ranks"}
    back = page.post("/api/undo", json={"annotator": "ada"}).json()
    assert back["item"]["key"] == state["item"]["key"]


def test_nobody_sees_results_before_all_have_answered(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 2, annotators_per_prompt=2)
    page = client(queues, results=lambda: {"verdict": "better"})

    def answer_all(name: str) -> dict[str, Any]:
        state = page.get(f"/api/next?annotator={name}").json()
        while state["item"] is not None:
            state = page.post("/api/answer", json=ranked(queues, state, name)).json()
        return dict(state)

    assert [answer_all(name)["results"] for name in ("ada", "bob", "ada")] == [
        {}, {"verdict": "better"}, {"verdict": "better"},
    ]  # fmt: skip


def test_the_page_and_its_parts_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = client(make_queues(tmp_path, 1))
    for path in ("/", "/page.js", "/page.css"):
        answer = page.get(path)
        assert answer.status_code == 200
        assert "http://" not in answer.text and "https://" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert page.get("/page.py").status_code == 404
    assert "<script>" not in page.get("/").text


def test_prompts_and_names_are_data(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 1)
    page = client(queues)
    state = page.get("/api/next", params={"annotator": EVIL[:60]}).json()
    assert state["item"]["prompt"] == EVIL
    page.post("/api/answer", json=ranked(queues, state, EVIL[:60]))
    assert EVIL[:20] not in page.get("/").text
    assert [answer.annotator for answer in queues.log.answers] == [EVIL[:60]]


@pytest.mark.parametrize("path", ["/image/x/0", "/image/{key}/9", "/image/{key}/-1", "/image/{key}/../../prompts.json"])
def test_no_path_leaves_the_questions(tmp_path: Path, path: str) -> None:
    queues = make_queues(tmp_path, 1)
    answer = client(queues).get(path.replace("{key}", queues.items[0].key))
    assert answer.status_code == 404 and b"PNG" not in answer.content


def test_images_are_served_in_their_format_while_they_are_there(tmp_path: Path) -> None:
    queues = make_queues(tmp_path / "images", 1)
    item = queues.items[0]
    item.images[0].write_bytes(encoded_picture(0, "JPEG"))  # named .png
    page = client(queues)
    shown = page.get(f"/image/{item.key}/0")
    assert shown.headers["content-type"] == "image/jpeg"
    assert "sandbox" in shown.headers["content-security-policy"]
    assert shown.headers["x-content-type-options"] == "nosniff"
    item.images[1].unlink()
    (tmp_path / "secret.png").write_bytes(encoded_picture(0, "PNG"))
    item.images[2].unlink()
    item.images[2].symlink_to(tmp_path / "secret.png")
    item.images[3].write_text("<script>")
    assert [page.get(f"/image/{item.key}/{place}").status_code for place in (1, 2, 3)] == [404] * 3


def test_half_of_a_surrogate_pair_does_not_stop_its_annotator(tmp_path: Path) -> None:
    index = json.loads((write_generated(tmp_path, 1) / "prompts.json").read_text())
    (tmp_path / "prompts.json").write_text(json.dumps([{**index[0], "prompt": "a \ud83d cat"}]))
    items = read_items(tmp_path)
    queues = Queues(items, AnswerLog(tmp_path / "annotations", items))
    page = client(queues)
    state = page.get("/api/next?annotator=ada").json()
    assert state["item"]["prompt"] == "a \ud83d cat"
    assert page.post("/api/answer", json=ranked(queues, state)).status_code == 200


def test_an_answer_too_many_is_a_conflict(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 1)
    page = client(queues)
    states = {name: page.get(f"/api/next?annotator={name}").json() for name in ("ada", "bob")}
    replies = [page.post("/api/answer", json=ranked(queues, state, name)) for name, state in states.items()]
    assert [reply.status_code for reply in replies] == [200, 409]
    assert "others have answered" in replies[1].json()["error"]


def test_a_token_may_have_any_characters(tmp_path: Path) -> None:
    page = client(make_queues(tmp_path, 1), token="a&b #;ж")
    assert page.get("/?token=a%26b%20%23%3B%D0%B6").status_code == 200
    assert page.get("/api/next?annotator=ada").status_code == 200


def test_wrong_answers_are_refused_and_not_written(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 1)
    page = client(queues)
    state = page.get("/api/next?annotator=ada").json()
    for change in (
        {"ranks": [1]},
        {"ranks": 5},
        {"ratings": 5},
        {"item": "x"},
        {"annotator": ""},
        {"answer": "undone", "ranks": None},
    ):
        answer = page.post("/api/answer", json=ranked(queues, state) | change)
        assert answer.status_code == 400 and answer.json()["error"]
    assert page.get("/api/next").status_code == 400
    for body in ("[]", "{", "1", "[" * 50_000):
        assert page.post("/api/answer", content=body, headers={"content-type": "application/json"}).status_code == 400
    assert queues.log.answers == [] and not queues.log.path.exists()


REFUSED: list[tuple[dict[str, str], int]] = [
    ({"host": "evil.example"}, 421),  # DNS rebinding
    ({"host": "evil.example:8765"}, 421),
    ({"host": "127.0.0.1:9999"}, 421),
    ({"host": "127.0.0.1.evil.example:8765"}, 421),
    ({"host": ""}, 421),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "http://127.0.0.1:9999"}, 403),
    ({"origin": "null"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"content-type": "text/plain"}, 415),  # what another site's form can send
    ({"content-length": str(LARGEST_REQUEST + 1)}, 413),
]


@pytest.mark.parametrize(("headers", "status"), REFUSED)
def test_requests_of_other_pages_are_refused(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    queues = make_queues(tmp_path, 1)
    page = client(queues, port=8765)
    body = ranked(queues, page.get("/api/next?annotator=ada").json())
    assert page.post("/api/answer", json=body, headers=headers).status_code == status
    assert queues.log.answers == []
    assert page.post("/api/answer", json=body, headers={"origin": HERE}).status_code == 200


def test_a_link_on_another_site_opens_the_page_and_nothing_else(tmp_path: Path) -> None:
    page = client(make_queues(tmp_path, 1), port=8765, token="secret")
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert page.get("/?token=secret", headers=link).status_code == 200
    assert page.get("/", headers=link | {"sec-fetch-dest": "iframe"}).status_code == 403
    assert page.get("/", headers=link | {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}).status_code == 403
    assert page.get("/api/next?annotator=ada", headers=link).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "[::1]", "127.0.0.1"])
def test_the_names_of_this_machine_are_accepted(tmp_path: Path, host: str) -> None:
    assert client(make_queues(tmp_path, 1), f"http://{host}:8765", port=8765).get("/").status_code == 200


def test_another_address_needs_the_token(tmp_path: Path) -> None:
    page = client(make_queues(tmp_path, 1), "http://192.168.1.5:8765", token="secret")
    assert page.get("/").status_code == 401
    assert page.get("/api/next?annotator=ada").status_code == 401
    assert page.get("/?token=wrong").status_code == 401
    entry = page.get("/?token=secret", follow_redirects=False)
    assert "samesite=lax" in entry.headers["set-cookie"].lower() and "httponly" in entry.headers["set-cookie"].lower()
    assert page.get("/?token=secret").status_code == 200  # follows the redirect with a cookie
    other = client(make_queues(tmp_path / "other", 1), "http://192.168.1.5:8766", token="other", port=8766)
    other.cookies = page.cookies  # of all ports
    assert other.get("/?token=other").status_code == 200 and other.get("/").status_code == 200
    page.cookies = other.cookies
    assert page.get("/api/next?annotator=ada").status_code == 200
    assert page.get("/api/next?annotator=ada", headers={"origin": "http://evil.example"}).status_code == 403
