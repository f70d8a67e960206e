import json
from pathlib import Path

import pytest

from t2ifb.data.datamodules import PromptDataModule
from t2ifb.data.prompts import PromptFile, PromptList, PromptSplits, RankingPrompts
from tests.conftest import real_data
from tests.data.parts import FolderDataset


def test_text_has_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dög  \na cat\n", encoding="utf-8")
    assert PromptFile(path).prompts() == ["a cat", "a dög", "a cat"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", b"\xef\xbb\xbfa cat\r\na d\xc3\xb6g\r\n"),
        ("prompts.txt", b"a cat\ra d\xc3\xb6g"),
        ("prompts.json", b'\xef\xbb\xbf["a cat", "a d\xc3\xb6g"]'),
        ("PROMPTS.JSON", b'["a cat", {"text": "a d\xc3\xb6g"}]'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert PromptFile(tmp_path / name).prompts() == ["a cat", "a dög"]


def test_a_line_ends_where_an_editor_ends_it(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\u2028in two\x0blines\x85here\na dog\n", encoding="utf-8")
    assert PromptFile(tmp_path / "prompts.txt").prompts() == ["a cat\u2028in two\x0blines\x85here", "a dog"]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.json"])
@pytest.mark.parametrize(
    ("encoding", "what"),
    [
        ("cp1252", r"line 2: the text is not in UTF-8 \(byte 0xe9\); save it as UTF-8"),
        ("utf-16", r"line 1: the text is in UTF-16; save it as UTF-8"),
        ("utf-16-be", r"line 1: the text is in UTF-16; save it as UTF-8"),
    ],
)
def test_other_encodings_are_named_with_the_line(tmp_path: Path, name: str, encoding: str, what: str) -> None:
    texts = ["a cat", "a café"]
    content = "\n".join(texts) if name.endswith("txt") else json.dumps(texts, indent=0, ensure_ascii=False)
    (tmp_path / name).write_bytes(content.replace('[\n"a cat', '["a cat').encode(encoding))
    with pytest.raises(ValueError, match=f"{name}, {what}$"):
        PromptFile(tmp_path / name).prompts()


def test_spellings_of_a_test_prompt_do_not_leak_into_training(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("\ufeffa red café\r\na dog\r\n".encode())
    (tmp_path / "test.json").write_text(json.dumps(["\ufeffa red cafe\u0301", "a fox"]))
    train, test = PromptFile(tmp_path / "train.txt"), PromptFile(tmp_path / "test.json")
    assert PromptSplits(train, PromptList([]), test).of("train") == ["a dog"]


def test_json_has_texts_or_objects(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"text": "a cat", "image": "1"}, "a dog"]))
    assert PromptFile(path).prompts() == ["a cat", "a dog"]


def test_errors_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(["a cat", " ", {"prompt": "a dog"}]))
    with pytest.raises(ValueError, match="2 errors in 2 of 3 entries") as raised:
        PromptFile(path).prompts()
    assert "entry 1: empty prompt" in str(raised.value)
    assert "entry 2: expected a text" in str(raised.value)
    assert PromptFile(path, on_error="skip").prompts() == ["a cat"]
    assert "dropped 2 of 3 entries" in caplog.text


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.txt does not exist"):
        PromptFile(tmp_path / "absent.txt").prompts()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.txt has no prompts"):
        PromptFile(tmp_path / "empty.txt").prompts()


def test_the_real_refl_prompts() -> None:
    prompts = PromptFile(real_data("imagereward_refl_prompts.json")).prompts()
    assert len(prompts) == 10_000
    assert len(set(prompts)) == 9_803


def test_prompts_of_rankings(dataset: FolderDataset) -> None:
    source = RankingPrompts(dataset, "validation")
    prompts = source.prompts()
    splits = PromptSplits(PromptList(["a"]), source, RankingPrompts(dataset, "test"))
    assert splits.ranked_splits == ["validation", "test"]
    assert prompts == [ranking.prompt for ranking in dataset.rankings("validation")]


def test_what_is_reported_by_is_neither_chosen_by_nor_tuned_on() -> None:
    splits = PromptSplits(
        PromptList(["a cat", "A  Cat", "a dog", "a dog", "a fox"]),
        PromptList(["a fox", "a hen", "a hen", "an owl"]),
        PromptList(["a Cat", "an owl"]),
    )
    assert splits.of("train") == ["a dog", "a dog"]
    assert splits.of("validation") == ["a fox", "a hen"]
    assert splits.of("test") == ["a Cat", "an owl"]
    with pytest.raises(ValueError, match="no train prompts that are not also in validation or test"):
        PromptSplits(PromptList(["a cat"]), PromptList(["a dog"]), PromptList(["a cat"])).of("train")
    with pytest.raises(ValueError, match="no test prompts"):
        PromptSplits(PromptList(["a cat"]), PromptList(["a dog"]), PromptList([])).of("test")


def test_held_out_prompts_are_drawn_by_seed_and_position() -> None:
    test = [f"prompt {number}" for number in range(466)]

    def some(most: int, prompts: list[str] = test, seed: int = 0) -> list[str]:
        return PromptSplits(PromptList(["a"]), PromptList(["b"]), PromptList(prompts), most, seed).of("test")

    drawn = some(200)
    assert len(set(drawn)) == 200 and drawn != test[:200]
    assert drawn == sorted(drawn, key=test.index) == some(200)
    assert set(some(150)) < set(drawn)
    assert some(200, seed=1) != drawn
    assert some(466) == some(10_000) == test
    renamed = [f"other {number}" for number in range(466)]
    assert [test[renamed.index(prompt)] for prompt in some(200, renamed)] == drawn  # by position, not by text
    with pytest.raises(ValueError, match="most=0 must be at least 1"):
        some(0)


def test_batches_of_prompts_are_a_function_of_seed_and_position() -> None:
    module = PromptDataModule([f"prompt {n}" for n in range(10)], batch_size=4, seed=1)
    assert module.steps_per_epoch == 3
    epoch = [prompt for position in range(3) for prompt in module.train_batch(position).prompts]
    assert sorted(epoch) == sorted(module.prompts)
    assert module.train_batch(4) == PromptDataModule(module.prompts, batch_size=4, seed=1).train_batch(4)
    assert module.train_batch(0).prompts != module.train_batch(3).prompts
    with pytest.raises(ValueError, match="no prompts to tune on"):
        PromptDataModule([])


def test_a_batch_comes_as_often_as_it_gives_updates() -> None:
    once = PromptDataModule([f"prompt {n}" for n in range(10)], batch_size=4, seed=1)
    twice = PromptDataModule(once.prompts, batch_size=4, seed=1, updates_per_batch=2)
    assert twice.steps_per_epoch == 2 * once.steps_per_epoch
    for update in range(8):
        batch = twice.train_batch(update)
        assert batch.update == update % 2 and batch.prompts == once.train_batch(update // 2).prompts
