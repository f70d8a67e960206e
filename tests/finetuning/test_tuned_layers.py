"""A reward run that tunes CLIP's last layers from pixels."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from safetensors.torch import load_file

from t2ifb.data.images import load_image
from t2ifb.reward_learning.module import RewardModule
from t2ifb.reward_learning.run import RewardTrainer
from t2ifb.scorers import Ensemble, RewardModel
from t2ifb.scorers.clip import CLIPEncoder
from tests.training.worlds import KillAt, Killed, make_training, run_training, same, weights


def tuning(folder: Path, **changes: Any) -> RewardTrainer:
    """The brightness world with the encoder's one layer tuned."""
    encoder = replace(make_training(folder).encoder, trainable_layers=1)
    return make_training(folder, **({"encoder": encoder, "encoder_lr": 1e-3, "epochs": 2} | changes))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tuned")
    return folder, run_training(tuning(folder), folder / "run")


@pytest.mark.slow
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
    assert "last 1 layers tuned" in (folder / "run" / "export" / "README.md").read_text()


@pytest.mark.slow
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


@pytest.mark.slow
def test_written_again_it_is_the_same_model_and_shares_no_encoder(
    tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = tuned
    model = RewardModel.from_pretrained(folder / "run")
    model.save_pretrained(tmp_path / "tuned")
    source = make_training(folder).encoder
    again = RewardModel.from_pretrained(tmp_path / "tuned", source.load())
    images, prompts = torch.rand(3, 3, 20, 20), ["a", "b", "c"]
    assert torch.equal(again(images, prompts), model(images, prompts))
    # A frozen model beside it, or on the encoder that the tuned one brought, is not scored with the tuned layers.
    frozen = RewardModel(source.load(), model.head)
    frozen.save_pretrained(tmp_path / "frozen")
    assert not torch.allclose(frozen(images, prompts), model(images, prompts), atol=1e-4)
    for order in (["tuned", "frozen"], ["frozen", "tuned"]):
        both = Ensemble.from_pretrained([tmp_path / name for name in order], k=0)
        mean = (frozen(images, prompts) + model(images, prompts)) / 2
        torch.testing.assert_close(both(images, prompts), mean)
    assert isinstance(again.encoder, CLIPEncoder)
    on_tuned = RewardModel.from_pretrained(tmp_path / "frozen", again.encoder)
    assert torch.equal(on_tuned(images, prompts), frozen(images, prompts))


@pytest.mark.slow
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


@pytest.mark.slow
def test_at_first_it_gives_what_the_frozen_encoder_and_head_give(tmp_path: Path) -> None:
    training = tuning(tmp_path)
    encoder = training.encoder.load()
    module = RewardModule(training.head(embedding_dim=12), training.optimizer, encoder=encoder).eval()
    images, prompts = torch.rand(4, 3, 16, 16), ["b", "a", "b", "c"]
    embedded = module.embed(images, encoder.tokenize(prompts))
    torch.testing.assert_close(embedded, (encoder.encode_images(images), encoder.encode_prompts(prompts)))
    head, layers = module.configure_optimizers().param_groups
    assert (head["params"], head["lr"]) == (list(module.head.parameters()), 3e-3)
    assert (layers["params"], layers["lr"], layers["weight_decay"]) == (module.tuned, 1e-5, 0)


@pytest.mark.slow
def test_a_process_without_a_share_of_the_batch_has_a_gradient_of_zero(tmp_path: Path) -> None:
    training = tuning(tmp_path)
    encoder = training.encoder.load()
    module = RewardModule(training.head(embedding_dim=12), training.optimizer, encoder=encoder)
    nothing = module.embed(torch.empty(0, 3, 16, 16), encoder.tokenize(["a"])[:0])
    assert [tensor.shape for tensor in nothing] == [(0, 12), (0, 12)]
    module.head(*nothing).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in module.tuned)


@pytest.mark.slow
def test_gradients_repeat_to_the_bit_with_many_texts_of_many_numbers() -> None:
    class Wide(torch.nn.Module):
        """As wide as a real encoder: the sums over equal texts are shared out among threads from 32,768 numbers on."""

        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(20, 256))

        def thaw(self) -> list[torch.nn.Parameter]:
            return [self.table]

        def encode_images(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

        def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.table[tokens[:, 0]]

    module = RewardModule(torch.nn.Bilinear(256, 256, 1), torch.optim.SGD, encoder=Wide())  # type: ignore[arg-type]
    images, tokens = torch.randn(512, 256, 1), torch.randint(20, (512, 1))

    def gradient() -> torch.Tensor:
        module.zero_grad()
        module.head(*module.embed(images, tokens)).sum().backward()
        assert module.tuned[0].grad is not None
        return module.tuned[0].grad.clone()

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(10))


@pytest.mark.slow
def test_tuning_in_half_precision_is_refused(tmp_path: Path) -> None:
    trainer = partial(lightning.Trainer, precision="bf16-true")
    with pytest.raises(ValueError, match=r"trainer\.precision=bf16-true .* use trainer.precision=bf16-mixed"):
        tuning(tmp_path, trainer=trainer).fit()
    with pytest.raises(ValueError, match="layers cannot be tuned in bf16"):
        replace(tuning(tmp_path).encoder, precision="bf16")
    with pytest.raises(ValueError, match="at least 0"):
        replace(tuning(tmp_path).encoder, trainable_layers=-1)


@pytest.mark.slow
def test_fewer_prompts_are_among_the_more(tmp_path: Path) -> None:
    def ids(count: int | None, seed: int) -> set[str]:
        data = make_training(tmp_path, train_prompts=count).data(feed=None, seed=seed)
        return {ranking.prompt_id for ranking in data.rankings("train")}

    assert len(ids(5, 0)) == 5
    assert ids(5, 0) < ids(9, 0) < ids(None, 0)
    assert ids(5, 0) != ids(5, 1)
    with pytest.raises(ValueError, match="train_prompts=25: expected a number from 1 to 24"):
        ids(25, 0)
