"""`trainer.deterministic=true`: nothing in an update may raise on a GPU for want of a deterministic kernel."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.reward_weighted import RewardWeighted
from t2ifb.scorers import AestheticScore, BLIPScore, CLIPScore, ImageReward, Mix
from t2ifb.scorers.clip import CLIPSource
from t2ifb.shapes import weights
from tests.finetuning.tuning_worlds import make_tuning, tune

WORLD = Path(weights.__file__).parent
RAISES = re.compile(
    r"_?upsample_(linear1d|bilinear2d|bicubic2d|trilinear3d|bilinear2d_aa|bicubic2d_aa)_backward"
    r"|avg_pool3d_backward|_adaptive_avg_pool[23]d_backward|(adaptive_|fractional_)?max_pool[23]d.*_backward"
    r"|max_unpool[23]d|(reflection|replication)_pad[123]d_backward|grid_sampler_[23]d_backward"
    r"|_embedding_bag.*backward|_ctc_loss.*|nll_loss2d.*|put_?|histc|bincount|kthvalue|(nan)?median|scatter_reduce_?|cumsum"
)
"""Operations on CUDA tensors that `torch.use_deterministic_algorithms` names as raising, as `aten` calls them."""


class Operations(TorchDispatchMode):
    """Notes what floating point numbers go through."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, torch.Tensor) and each.is_floating_point() for each in args):
            self.names.add(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Listen(lightning.Callback):
    """Notes the operations of each update, its backward passes included."""

    def __init__(self) -> None:
        self.heard = Operations()

    def on_train_batch_start(self, *_: Any) -> None:
        self.heard.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.heard.__exit__(None, None, None)


@pytest.fixture
def undone() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, DRaFT(2), RewardWeighted(2)], ids=["refl", "draft", "reward_weighted"])
def test_no_operation_of_an_update_would_raise_on_a_gpu(tmp_path: Path, undone: None, method: Any) -> None:
    clip = CLIPSource(f"local-dir:{WORLD / 'clip'}", device="cpu")
    scorers = {
        "clip_score": CLIPScore(clip),
        "aesthetic_score": AestheticScore.from_pretrained(WORLD / "aesthetic", clip),
        "blip_score": BLIPScore.from_pretrained(WORLD / "blip"),
        "image_reward": ImageReward.from_pretrained(WORLD / "image_reward"),
    }
    listen = Listen()
    tuning = make_tuning(reward=Mix(scorers), algorithm=method, epochs=1, standardise=False)
    summary = tune(tuning, tmp_path, callbacks=[listen], deterministic=True)
    assert summary["steps"] == 2
    assert {"convolution", "convolution_backward", "mm"} <= listen.heard.names
    assert not {name for name in listen.heard.names if RAISES.fullmatch(name)}
