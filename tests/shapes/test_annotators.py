"""Simulated annotators and the data set they make."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.shapes import annotators
from t2ifb.shapes.annotators import IMAGES_PER_PROMPT, SIZES, SimulatedAnnotator, build, jobs_of, opinions, rank
from t2ifb.shapes.grammar import Scene, scenes
from t2ifb.shapes.renderer import render
from t2ifb.shapes.samples import SAMPLERS, chunks

PROMPTS = {"train": 2, "compositional": 1}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 0.2))
def test_ranks_follow_opinions_and_ties_are_close(values: list[float], tie_width: float) -> None:
    opinion = np.array(values)
    ranks = rank(opinion, tie_width)
    assert sorted(set(ranks)) == list(range(1, max(ranks) + 1))
    for i, j in zip(*np.triu_indices(len(values), 1), strict=True):
        if ranks[i] < ranks[j]:
            assert opinion[i] > opinion[j]
        if ranks[i] == ranks[j]:
            assert abs(opinion[i] - opinion[j]) <= tie_width + 1e-12


def test_choices_follow_the_bradley_terry_model() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([opinions(np.array([0.3, 0.2], np.float32), 0.1, rng) for _ in range(20_000)])
    assert (drawn[:, 0] > drawn[:, 1]).mean() == pytest.approx(1 / (1 + np.exp(-1)), abs=0.01)


def test_a_simulated_annotator_prefers_what_fits_the_prompt() -> None:
    scene = next(iter(scenes("train", 1, seed=0)))
    pixels = render(scene, np.random.default_rng(0))
    right = Image.fromarray((255 * pixels).round().astype(np.uint8))
    gray = Image.new("RGB", (64, 64), "gray")
    assert SimulatedAnnotator(noise=0.0)([gray, right, gray], scene.prompt) == [2, 1, 2]
    answers = [SimulatedAnnotator(noise=5.0, seed=seed)([gray, right], scene.prompt) for seed in range(20)]
    assert len({tuple(answer) for answer in answers}) > 1
    again = [SimulatedAnnotator(noise=5.0, seed=seed)([gray, right], scene.prompt) for seed in range(20)]
    assert again == answers


def test_what_a_simulated_annotator_answers_does_not_depend_on_earlier_questions() -> None:
    prompts = [scene.prompt for scene in scenes("train", 8, seed=0)]
    images = [Image.new("RGB", (64, 64), colour) for colour in ("gray", "white", "black")]
    one, other = (SimulatedAnnotator(noise=5.0) for _ in range(2))
    answers = {prompt: one(images, prompt) for prompt in prompts}
    assert {prompt: other(images, prompt) for prompt in reversed(prompts)} == answers
    assert len({tuple(answer) for answer in answers.values()}) > 1


def test_chunks_cover_the_prompts_once_with_four_to_nine_images_each() -> None:
    some = list(chunks("train", 120, (4, 9), seed=0))
    scenes = [scene for chunk in some for scene in chunk.scenes]
    counts = [count for chunk in some for count in chunk.counts]
    assert len({scene.prompt for scene in scenes}) == 120
    assert 4 <= min(counts) < max(counts) <= 9
    assert len({key for chunk in some for key in chunk.noise_keys}) == sum(counts)
    assert {sampler for chunk in some for sampler in chunk.samplers} == set(range(len(SAMPLERS)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated") / "shapes"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("os.cpu_count", lambda: 1)  # one worker, as each takes seconds to start
        figures = build(folder, PROMPTS)
    assert 0 <= figures["annotator_agreement"] <= 1
    assert 0 < figures["gold"] < 1
    return folder


def test_the_reader_of_imagereward_db_reads_it(world: Path) -> None:
    dataset = ImageRewardDB(world)
    for split, count in PROMPTS.items():
        rankings = dataset.rankings(split)
        assert len(rankings) == count
        for ranking in rankings:
            assert Scene.parse(ranking.prompt).split == split
            assert 4 <= len(ranking.images) <= 9
            assert ranking.images[0].open().size == (64, 64)  # type: ignore[union-attr]
    assert not dataset.available("validation")


def test_a_second_call_finds_it_there_and_other_settings_are_refused(world: Path) -> None:
    before = (world / "build.json").stat().st_mtime_ns
    assert build(world, PROMPTS)["gold"] > 0
    assert (world / "build.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"noise=0\.105, not 0\.5.*Delete that folder"):
        build(world, PROMPTS, noise=0.5)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown split dev"):
        build(tmp_path / "shapes", {"dev": 3})


def test_other_peoples_data_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metadata-train.parquet").write_text("mine")
    assert build(tmp_path, PROMPTS) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["metadata-train.parquet"]


def test_a_larger_split_leaves_the_judges_their_own_prompts() -> None:
    own = annotators.judges_prompts("train")
    assert own == {scene.prompt for job in annotators.judges_jobs("train") for scene in job.scenes}
    usual = {scene.prompt for scene in scenes("train", annotators.PROMPTS["train"], seed=0)}
    assert len(own) == annotators.JUDGES_PROMPTS["train"]
    assert not own & usual
    for count, seed in ((4800, 0), (1200, 1)):
        drawn = {s.prompt for job in annotators.jobs_of({"train": count}, (4, 9), seed)["train"] for s in job.scenes}
        assert len(drawn) == count
        assert not drawn & own


def test_other_splits_do_not_depend_on_how_large_training_is() -> None:
    usual, larger = (annotators.jobs_of({"train": count, "test": 60}, (4, 9), seed=0) for count in (50, 4800))
    assert usual["test"] == larger["test"]


def test_the_small_set_has_the_first_prompts_of_the_full_one() -> None:
    """So that what the rankings leave out, such as the prompts for fine-tuning, is left out of both."""
    few, all_of = (jobs_of(SIZES[size], IMAGES_PER_PROMPT, seed=0) for size in ("small", "full"))
    assert all(len(few[split]) < len(all_of[split]) for split in few)
    assert all(few[split] == all_of[split][: len(few[split])] for split in SIZES["full"])


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size=huge must be one of small, full, large"):
        build(tmp_path, size="huge")
