"""The reward run as a whole: it learns, writes what it promises, repeats itself and survives interruption."""

import csv
import json
import resource
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.data.images import load_image
from t2ifb.scorers import RewardModel
from t2ifb.scorers.heads import MLPHead
from t2ifb.shapes.gold import GoldScore
from t2ifb.training.metrics import read_metrics
from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.files import StorageError
from tests.training.worlds import KillAt, Killed, make_training, run_training, same, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    return folder, run_training(make_training(folder), folder / "whole", pictures=True)


def test_it_learns_what_the_annotators_like(whole: tuple[Path, dict[str, Any]]) -> None:
    _, summary = whole
    assert summary["test/accuracy"] > 0.8 > summary["test/table"]["random"]


def test_it_writes_everything_that_a_run_folder_promises(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = whole
    run = folder / "whole"
    for name in (
        "summary.json", "metrics.csv", "table_test.md", "table_test.csv", "table_test.json", "learning_curves.png",
        "reward_by_rank.png", "calibration.png", "samples/rankings.png", "checkpoints/best.ckpt",
        "checkpoints/last.ckpt", "export/reward.safetensors", "export/config.json", "export/README.md",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    card = (run / "export" / "README.md").read_text()
    assert "not included in this folder: `clip (SHA-256 " in card and str(folder) not in card
    assert json.loads((run / "summary.json").read_text())["seed"] == 0
    assert {"versions", "git_commit", "wall_seconds", "precision", "encoder", "data", "export"} <= summary.keys()
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"step", "wall_seconds", "train/loss", "val/accuracy"} <= set(rows[0])
    assert [int(row["step"]) for row in rows] == sorted({int(row["step"]) for row in rows})


def test_the_export_scores_pixels_as_the_module_scored_embeddings(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    training = make_training(folder)
    data = training.data(feed=training.cache, seed=0)
    data.prepare_data()
    encoded, ranking = data.encoded("test"), data.rankings("test")[0]
    model = RewardModel.from_pretrained(folder / "whole")
    images = torch.stack([load_image(image) for image in ranking.images]).requires_grad_()
    scores = model(images, [ranking.prompt] * len(images))
    batch = encoded.batch_of_prompts(torch.arange(1).numpy())
    torch.testing.assert_close(scores, model.head(batch.images, batch.prompts), atol=1e-5, rtol=0)
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    run_training(make_training(folder), folder / "again")
    run_training(make_training(folder), folder / "other", seed=1)
    assert same(weights(folder / "again"), weights(folder / "whole"))
    assert not same(weights(folder / "other"), weights(folder / "whole"))


@pytest.mark.parametrize("step", [2, 6, 13, 23])
def test_a_killed_run_resumes_to_the_same_weights(whole: tuple[Path, dict[str, Any]], step: int) -> None:
    folder, _ = whole
    run = folder / f"killed{step}"
    with pytest.raises(Killed):
        run_training(make_training(folder), run, callbacks=[KillAt(step)])
    assert not (run / "summary.json").exists()
    run_training(make_training(folder), run, resume=True)
    assert same(weights(run), weights(folder / "whole"))
    figures = [(run_ / "metrics.csv").read_text().splitlines() for run_ in (run, folder / "whole")]
    assert [line.split(",")[2:] for line in figures[0]] == [line.split(",")[2:] for line in figures[1]]


def test_a_ceiling_that_does_not_know_the_prompts_is_refused_before_the_run(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    dataset = ImageRewardDB(whole[0] / "data", ceiling=GoldScore())
    with pytest.raises(ValueError, match="GoldScore does not support .*'picture 0 of test'.*dataset.ceiling=None"):
        run_training(make_training(whole[0], dataset=dataset), tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_ends_with_its_own_status(
    whole: tuple[Path, dict[str, Any]], number: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = whole
    run = folder / f"stopped={status}"
    with pytest.raises(SystemExit) as stopped:
        run_training(make_training(folder), run, callbacks=[KillAt(9, number)])
    assert stopped.value.code == status
    assert f"To continue: 'resume=\"{run}\"'\n" in capsys.readouterr().out
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10
    run_training(make_training(folder), run, resume=True)
    assert same(weights(run), weights(folder / "whole"))


class Poison(lightning.Callback):
    """Makes the weights' gradients infinite at some steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx in self.steps:
            next(module.parameters()).grad.fill_(float("inf"))


def test_an_infinite_gradient_is_skipped_and_counted(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    summary = run_training(make_training(folder), folder / "poisoned", callbacks=[Poison({3, 4})])
    assert summary["skipped_updates"] == 2
    assert all(value.isfinite().all() for value in weights(folder / "poisoned").values())


def test_too_many_errors_stop_the_run_and_say_what_was_first(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    training = make_training(folder, max_skipped_updates=2)
    with pytest.raises(ValueError, match=r"3 updates .* the first was the gradient of head\.\S+ at step 10"):
        run_training(training, folder / "broken", callbacks=[Poison(set(range(10, 20)))])
    assert (folder / "broken" / "checkpoints" / "last.ckpt").exists()


def test_a_run_that_was_moved_resumes_to_the_same_weights(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    with pytest.raises(Killed):
        run_training(make_training(folder), folder / "before", callbacks=[KillAt(23)])
    (folder / "before").rename(folder / "after")
    summary = run_training(make_training(folder), folder / "after", resume=True)
    assert summary["best_step"] == whole[1]["best_step"]
    assert same(weights(folder / "after"), weights(folder / "whole"))
    assert not (folder / "before").exists()


class FillDisk(lightning.Callback):
    """From a step on, no file can grow beyond a kilobyte."""

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 9:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_is_one_message_and_the_run_resumes_when_there_is_space(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    run, limits = folder / "full", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(StorageError, match=f"No space left in {run}.* Complete results are kept"):
            run_training(make_training(folder), run, callbacks=[FillDisk()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] <= 9
    assert not list(run.rglob("*.tmp"))
    run_training(make_training(folder), run, resume=True)
    assert same(weights(run), weights(folder / "whole"))


def test_two_processes_are_not_in_one_run(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    with RunFolder(folder / "held").held(), pytest.raises(ValueError, match="Another process uses"):
        run_training(make_training(folder), folder / "held")


def test_what_the_run_sets_is_not_silently_ignored(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    for name, remedy in (("max_steps", "give epochs="), ("accumulate_grad_batches", "give batch_size=")):
        trainer = partial(lightning.Trainer, **{name: 5})
        with pytest.raises(ValueError, match=rf"trainer\.{name} is set by the run: {remedy}"):
            make_training(folder, output_dir=folder / "refused", trainer=trainer).fit()
    with pytest.raises(ValueError, match=r"head\.embedding_dim is set by the run"):
        run_training(make_training(folder, head=partial(MLPHead, embedding_dim=3)), folder / "refused")


def test_baselines_of_one_name_keep_their_own_rows(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    clip = next(iter(make_training(folder).baselines.values()))
    summary = run_training(make_training(folder, epochs=1, baselines={"one": clip, "two": clip}), folder / "twice")
    assert {"CLIP Score", "two"} <= summary["test/table"].keys()


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epochs=0"):
        make_training(tmp_path, epochs=0)


def test_what_belongs_to_a_data_set_is_read_from_it(tmp_path: Path) -> None:
    make_training(tmp_path)
    facts = {"test_splits": ["validation", "test"], "published": {"someone": 60.0}}
    training = make_training(tmp_path, dataset=ImageRewardDB(tmp_path / "data", **facts))
    assert training.splits == ("train", "validation", "validation", "test") and training.published == {"someone": 60.0}
    with pytest.raises(ValueError, match=r"dataset.test_splits=\[\]: expected at least one split"):
        make_training(tmp_path, dataset=ImageRewardDB(tmp_path / "data", test_splits=()))
    with pytest.raises(ValueError, match=r"dataset.ceiling_parts=\['fidelity'\] needs a dataset.ceiling with parts"):
        make_training(tmp_path, dataset=ImageRewardDB(tmp_path / "data", ceiling_parts=["fidelity"]))


def test_published_figures_are_beside_the_first_test_split_only(tmp_path: Path) -> None:
    make_training(tmp_path)
    facts = {"test_splits": ["test", "validation"], "published": {"CLIP Score": 60.0}}
    run_training(make_training(tmp_path, dataset=ImageRewardDB(tmp_path / "data", **facts), epochs=1), tmp_path / "run")
    found = {}
    for split in ("test", "validation"):
        rows = json.loads((tmp_path / "run" / f"table_{split}.json").read_text())
        found[split] = {row["published"] for row in rows} >= {60.0}
    assert found == {"test": True, "validation": False}


def test_the_last_update_is_validated_too(tmp_path: Path) -> None:
    training = make_training(tmp_path, epochs=3, validations_per_epoch=0.5, batch_size=48)
    run_training(training, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert [row["step"] for row in rows if row.get("val/loss")][-1] == last
    assert last % (2 * 3) == 0 and last >= 3 * 3  # three updates per epoch, validated every two epochs


def test_validation_rankings_of_ties_only_are_refused(tmp_path: Path) -> None:
    make_training(tmp_path)
    dataset = ImageRewardDB(tmp_path / "data")

    class Tied:
        def available(self, split: str) -> bool:
            return True

        def rankings(self, split: str) -> Any:
            found = dataset.rankings(split)
            return [replace(r, ranks=(1,) * len(r.ranks)) for r in found] if split == "validation" else found

    with pytest.raises(ValueError, match="the split validation has no comparison with a better image"):
        run_training(make_training(tmp_path, dataset=Tied()), tmp_path / "run")


def test_a_folder_with_a_run_is_not_overwritten(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    with pytest.raises(ValueError, match=r"output_dir='.*': the run in it is finished; .* Give another folder"):
        run_training(make_training(folder), folder / "whole", resume=True)
    with pytest.raises(Killed):
        run_training(make_training(folder), folder / "unfinished", callbacks=[KillAt(13)])
    with pytest.raises(ValueError, match="unfinished run in it; continue it with resume=True, or give another folder"):
        run_training(make_training(folder), folder / "unfinished")
