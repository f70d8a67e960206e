"""A reward run that tunes CLIP's last layers from pixels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2ifb.data.images import load_image
from t2ifb.learning.reward_module import RewardModule
from t2ifb.learning.reward_training import RewardTraining
from t2ifb.scorers import Ensemble, RewardModel
from tests.learning.test_reward_training import KillAt, Killed, same, weights
from tests.learning.worlds import make_training, run_training


def tuning(folder: Path, **changes: Any) -> RewardTraining:
    """The brightness world with the encoder's one layer tuned."""
    encoder = replace(make_training(folder).encoder, trainable_layers=1)
    return make_training(folder, **({"encoder": encoder, "encoder_lr": 1e-3, "epochs": 2} | changes))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tuned")
    return folder, run_training(tuning(folder), folder / "run")


def test_the_last_layers_change_with_the_head_and_the_export_holds_them(tuned: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = tuned
    assert summary["test/accuracy"] > 0.7
    assert summary["test/flipped_comparisons"] is None
    before, after = load_file(folder / "clip" / "open_clip_model.safetensors"), weights(folder / "run")
    changed = {name.removeprefix("encoder."): weight for name, weight in after.items() if name.startswith("encoder.")}
    assert "visual.proj" in changed
    assert "text_projection" in changed
    assert "visual.conv1.weight" not in changed
    assert not any(torch.equal(weight, before[name]) for name, weight in changed.items() if weight.ndim > 1)
    assert not (folder / "cache").exists()  # nothing was embedded beforehand
    assert "the last 1 layers were tuned" in (folder / "run" / "export" / "README.md").read_text()


def test_the_export_scores_pixels_as_the_run_did(tuned: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = tuned
    model = RewardModel.from_pretrained(folder / "run")
    right = asked = 0
    for ranking in tuning(folder).data(feed=None).rankings("test"):
        images = torch.stack([load_image(image) for image in ranking.images])
        scores = model(images, [ranking.prompt] * len(images))
        right += sum(bool(scores[better] > scores[worse]) for better, worse in ranking.comparisons())
        asked += len(ranking.comparisons())
    assert right / asked == pytest.approx(summary["test/accuracy"])
    assert not any(weight.requires_grad for weight in model.parameters())


def test_written_again_it_is_the_same_model_and_shares_no_encoder(
    tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = tuned
    model = RewardModel.from_pretrained(folder / "run")
    model.save_pretrained(tmp_path)
    frozen = model.encoder.source.load() if hasattr(model.encoder, "source") else None
    again = RewardModel.from_pretrained(tmp_path, frozen)
    both = Ensemble.from_pretrained([folder / "run", tmp_path], k=0)
    images, prompts = torch.rand(3, 3, 20, 20), ["a", "b", "c"]
    assert torch.equal(again(images, prompts), model(images, prompts))
    torch.testing.assert_close(both(images, prompts), model(images, prompts))
    assert again.encoder is not frozen


def test_a_checkpoint_holds_no_frozen_weight_and_a_killed_run_resumes_to_the_same_weights(
    tuned: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = tuned
    state = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert "encoder.model.visual.proj" in state
    assert "encoder.model.visual.conv1.weight" not in state
    with pytest.raises(Killed):
        run_training(tuning(folder), folder / "killed", callbacks=[KillAt(8)])
    run_training(tuning(folder), folder / "killed", resume=True)
    assert same(weights(folder / "killed"), weights(folder / "run"))


def test_at_first_it_gives_what_the_frozen_encoder_and_head_give(tmp_path: Path) -> None:
    training = tuning(tmp_path)
    encoder = training.encoder.load()
    module = RewardModule(training.head(embedding_dim=12), training.optimizer, encoder=encoder).eval()
    images, prompts = torch.rand(4, 3, 16, 16), ["b", "a", "b", "c"]
    embedded = module.embed(images, encoder.tokenize(prompts))
    torch.testing.assert_close(embedded, (encoder.encode_images(images), encoder.encode_prompts(prompts)))
    assert [len(group["params"]) for group in module.configure_optimizers().param_groups] == [6, len(module.tuned)]


def test_tuning_in_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tuned in fp32, not bf16"):
        replace(tuning(tmp_path).encoder, precision="bf16")
    with pytest.raises(ValueError, match="at least 0"):
        replace(tuning(tmp_path).encoder, trainable_layers=-1)


def test_fewer_prompts_are_among_the_more(tmp_path: Path) -> None:
    def ids(count: int | None, seed: int) -> set[str]:
        data = make_training(tmp_path, train_prompts=count).data(feed=None, seed=seed)
        return {ranking.prompt_id for ranking in data.rankings("train")}

    assert len(ids(5, 0)) == 5
    assert ids(5, 0) < ids(9, 0) < ids(None, 0)
    assert ids(5, 0) != ids(5, 1)
    with pytest.raises(ValueError, match="train_prompts=25: expected a number from 1 to 24"):
        ids(25, 0)
