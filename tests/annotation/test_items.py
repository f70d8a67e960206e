"""Questions from folders and tables."""

import json
from pathlib import Path

import pytest

from t2ifb.annotation.items import read_items
from tests.annotation.parts import EVIL, write_generated
from tests.data.parts import encoded_picture


def test_images_of_a_prompt_are_one_question_in_a_neutral_order(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path, prompts=20))
    assert {item.prompt for item in items} == {EVIL, *(f"prompt {n}" for n in range(1, 20))}
    assert len({item.key for item in items}) == 20
    for item in items:
        assert len(item.images) == 4
        assert all(model in image.name for model, image in zip(item.models, item.images, strict=True))
    assert len({item.models for item in items}) > 3
    assert read_items(tmp_path) == items
    again = read_items(tmp_path, seed=1)
    assert again != items and {i.key for i in again} == {i.key for i in items}


def test_too_many_images_are_divided(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path, prompts=1, copies=5), images=4)
    assert sorted(len(item.images) for item in items) == [3, 3, 4]
    assert len({image for item in items for image in item.images}) == 10
    with pytest.raises(ValueError, match="images=10: expected a number from 2 to 9"):
        read_items(tmp_path, images=10)


def test_models_meet_in_divided_questions_and_no_image_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_generated(tmp_path, prompts=1, copies=5)
    assert all({"base", "tuned"} <= set(item.models) for item in read_items(tmp_path, images=5))
    write_generated(tmp_path, prompts=1, copies=3, models=("base",))
    for items in (read_items(tmp_path, images=2), read_items(tmp_path, "compare")):
        assert len(items) == 2 and len({image for item in items for image in item.images}) == 3
    assert not caplog.records
    index = [
        {"prompt": "x", "images": {"base": ["0000_0_base.png"], "tuned": ["0000_0_tuned.png", "0000_1_tuned.png"]}}
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(index))
    assert len(read_items(tmp_path, "compare")) == 1
    assert "1 of 3 images" in caplog.text


def test_a_comparison_has_one_image_of_each_model(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path, prompts=2, copies=2, models=("base", "tuned", "other")), "compare")
    assert len(items) == 2 * 3 * 2
    for item in items:
        assert len(set(item.models)) == len(item.images) == 2
        assert len({image.name.split("_")[1] for image in item.images}) == 1  # from the same noise


def test_a_prompt_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "images" / "0"
    folder.mkdir(parents=True)
    (folder / "prompt.txt").symlink_to(tmp_path / "secret")
    for copy in range(2):
        (folder / f"{copy}.png").write_bytes(encoded_picture(copy, "PNG"))
    with pytest.raises(ValueError, match=r"prompt.txt is outside of the folder"):
        read_items(tmp_path / "images")


def test_folders_and_tables(tmp_path: Path) -> None:
    rows = []
    for number in range(2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "prompt.txt").write_text(f"a cat\n{number}")
        for copy in range(3):
            (folder / f"{copy}.png").write_bytes(encoded_picture(3 * number + copy, "PNG"))
            rows.append(f"a dog {number},{number}/{copy}.png,m{copy}")
    (tmp_path / "images.csv").write_text("\n".join(["prompt,image,model", *rows]))
    items = read_items(tmp_path)
    assert sorted(item.prompt for item in items) == ["a cat 0", "a cat 1"]
    assert {item.models for item in items} == {("", "", "")}
    assert len(read_items(tmp_path, "compare")) == 2 * 2  # neighbours
    table = read_items(tmp_path / "images.csv")
    assert sorted(table[0].models) == ["m0", "m1", "m2"]


def test_files_of_the_same_name_in_other_folders_are_other_questions(tmp_path: Path) -> None:
    rows = ["prompt,image,model"]
    for folder in ("base", "good", "best"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prompt.txt").write_text("a cat")
        for name in ("0.png", "1.png"):
            (tmp_path / folder / name).write_bytes(encoded_picture(len(rows), "PNG"))
        rows.append(f"a cat,{folder}/0.png,{folder}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    assert len({item.key for item in read_items(tmp_path)}) == 3
    pairs = read_items(tmp_path / "images.csv", "compare")
    assert len({item.key for item in pairs}) == len(pairs) == 3


def test_other_images_under_the_same_names_are_other_questions(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "prompt.txt").write_text("a cat")
    keys = []
    for pictures in ((1, 2), (2, 1), (1, 3)):
        for number, picture in enumerate(pictures):
            (tmp_path / "0" / f"{number}.png").write_bytes(encoded_picture(picture, "PNG"))
        keys.append(read_items(tmp_path)[0].key)
    assert keys[0] == keys[1] != keys[2]


def test_questions_about_equal_images_have_keys_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "prompt.txt").write_text("a cat")
    for number in range(4):
        (tmp_path / "0" / f"{number}.png").write_bytes(encoded_picture(1, "PNG"))
    items = read_items(tmp_path, images=2)
    assert len({item.key for item in items}) == len(items) == 2


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        read_items(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no prompt with at least two images$"):
        read_items(tmp_path)
    for name in ("/etc/passwd", "../x.png"):
        (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": "x", "images": {"base": [name]}}]))
        with pytest.raises(ValueError, match="outside of the folder"):
            read_items(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(encoded_picture(0, "PNG"))
    (tmp_path / "in/link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", tmp_path / "secret.png", "link.png"):
        (tmp_path / "in/images.csv").write_text(f"prompt,image\nx,{name}\nx,{name}\n")
        with pytest.raises(ValueError, match=r"images.csv, line 2: .* is outside of the folder"):
            read_items(tmp_path / "in/images.csv")
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": "x", "images": ["a.png"]}]))
    with pytest.raises(ValueError, match="entry 0: expected prompt and images by model"):
        read_items(tmp_path)
    write_generated(tmp_path, prompts=1)
    (tmp_path / "0000_0_base.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images cannot be shown: image .*0000_0_base.png is empty"):
        read_items(tmp_path)
