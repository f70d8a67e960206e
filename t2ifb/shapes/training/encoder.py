"""CLIP of the `shapes` domain in `open_clip`'s format, trained with hard negatives and captions about quality."""

import json
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP
from torch import Tensor, nn

from t2ifb.scorers.preprocess import preprocess
from t2ifb.shapes.training.auxiliary import SceneReader
from t2ifb.shapes.training.contrastive import CaptionedPictures
from t2ifb.shapes.training.loop import fit
from t2ifb.shapes.training.vocabulary import CONTEXT_LENGTH, build_tokenizer

STEPS = 2800
EMBEDDING_DIM = 256
IMAGE_SIZE = 128
"""Side of the vision tower's input in pixels: twice the images', because its first layers divide by four."""
MEAN = STD = (0.5, 0.5, 0.5)


def model_config(vocabulary_size: int) -> dict[str, Any]:
    """The `model_cfg` of `open_clip_config.json`: a small CLIP-ResNet (arXiv 2103.00020, section 2.4)."""
    return {
        "embed_dim": EMBEDDING_DIM,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary_size,
            "width": 128,
            "heads": 4,
            "layers": 3,
            "hf_tokenizer_name": "t2ifb-shapes",
            "tokenizer_kwargs": {"clean": "lower"},
        },
    }


def build(vocabulary_size: int) -> CLIP:
    """An untrained model of about 2 million parameters."""
    config = model_config(vocabulary_size)
    text = {key: value for key, value in config["text_cfg"].items() if not key.startswith(("hf_", "tokenizer_"))}
    return CLIP(embed_dim=config["embed_dim"], vision_cfg=config["vision_cfg"], text_cfg=text)


class Pupil(nn.Module):
    """CLIP with the auxiliary map for training."""

    def __init__(self, tokenizer: Any) -> None:
        """Build an untrained CLIP for a tokenizer."""
        super().__init__()
        self.clip = build(len(tokenizer))
        self.reader = SceneReader(EMBEDDING_DIM)
        self._tokenizer = tokenizer

    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings of images in [0, 1]."""
        embeddings: Tensor = self.clip.encode_image(normalised(images), normalize=True)
        return embeddings

    def embed_captions(self, captions: list[str]) -> Tensor:
        """Embeddings of texts."""
        options = {"padding": "max_length", "max_length": CONTEXT_LENGTH, "truncation": True}
        ids = self._tokenizer(captions, return_tensors="pt", **options).input_ids
        embeddings: Tensor = self.clip.encode_text(ids, normalize=True)
        return embeddings

    def scale(self) -> Tensor:
        """Factor on cosines."""
        return self.clip.logit_scale.exp()


def train(folder: Path, seed: int = 0, scenes: int = 12_000) -> CLIP:
    """Train on damaged pictures and their captions. Needs the base model's weights."""
    torch.manual_seed(seed)
    pupil = Pupil(build_tokenizer()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lesson = CaptionedPictures(folder, seed, scenes)
    trained: Any = fit(
        "clip", pupil, lambda step: lesson.loss(pupil, step), folder, steps=STEPS, learning_rate=2e-3,
        weight_decay=0.05, ema_decay=0.995,
    )  # fmt: skip
    return trained.clip.eval()


def normalised(images: Tensor) -> Tensor:
    """Normalise images in [0, 1] for the vision tower."""
    return preprocess(images, IMAGE_SIZE, MEAN, STD).contiguous(memory_format=torch.channels_last)


def save(model: CLIP, folder: Path) -> None:
    """Write the folder that `open_clip.create_model("local-dir:<folder>")` reads, in half precision."""
    from safetensors.torch import save_file

    from t2ifb.shapes.training.vocabulary import write_merges

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    write_merges(folder)
    preprocess_cfg = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(len(tokenizer)), "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(state, folder / "open_clip_model.safetensors")
