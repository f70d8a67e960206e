"""The world's CLIP, in `open_clip`'s form: contrastive, with hard negative captions and captions about quality."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import CLIP
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2ifb.scorers.preprocess import preprocess
from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.training import distortions, pictures
from t2ifb.shapes.training.auxiliary import SceneFacts, SceneReader
from t2ifb.shapes.training.captions import corrupt
from t2ifb.shapes.training.loop import fit, generator
from t2ifb.shapes.training.vocabulary import CONTEXT_LENGTH, build_tokenizer

STEPS = 2800
SCENES_A_BATCH = 64
HARD_NEGATIVES = 2
EMBEDDING_DIM = 256
IMAGE_SIZE = 128
"""Pixels of the vision tower's input. Twice the images' own, as its first layers divide by four."""
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
    """CLIP, and the map that reads scenes from its embeddings while it is trained."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.clip = build(vocabulary_size)
        self.reader = SceneReader(EMBEDDING_DIM)


def train(folder: Path, seed: int = 0, scenes: int = 12_000) -> CLIP:
    """Train on pictures with faults: every scene of a batch stands there twice, damaged and drawn again.

    The loss is CLIP's (arXiv 2103.00020, figure 3) with, for each image, captions that are nearly right as further
    negatives (NegCLIP, arXiv 2210.01936), plus that of `auxiliary`. Pairs whose captions do not contradict each other
    are left out. Needs the base model's weights.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pupil = Pupil(len(tokenizer)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = pictures.make(folder, seed, scenes)
    facts = SceneFacts.of(seen.scenes, seen.layouts)
    prompts = [scene.prompt for scene in seen.scenes]

    def tokens(captions: list[str]) -> Tensor:
        options = {"padding": "max_length", "max_length": CONTEXT_LENGTH, "truncation": True}
        return tokenizer(captions, return_tensors="pt", **options).input_ids

    def loss_at(step: int) -> Tensor:
        draw, rng = generator(seed, 3, step), np.random.default_rng([seed, 3, step])
        picked = torch.randint(scenes, (SCENES_A_BATCH,), generator=draw).repeat(2)
        rows = picked + scenes * (torch.arange(len(picked)) >= SCENES_A_BATCH)
        phrases = [seen.damage.words(row, draw) for row in rows.tolist()]
        captions = [_join(prompts[i], phrase) for i, phrase in zip(picked.tolist(), phrases, strict=True)]
        wrong = [
            _nearly_right(seen.scenes[i], phrase, rng)
            for i, phrase in zip(picked.tolist(), phrases, strict=True)
            for _ in range(HARD_NEGATIVES)
        ]
        # On a CPU the backward pass of flash attention takes several times that of the plain form.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image_embeddings = pupil.clip.encode_image(normalised(seen.images[rows].float() / 255), normalize=True)
            text_embeddings = pupil.clip.encode_text(tokens(captions + wrong), normalize=True)
        right, negatives = text_embeddings.float().split([len(captions), len(wrong)])
        image_embeddings = image_embeddings.float()
        scale = pupil.clip.logit_scale.exp().clamp(max=100)
        logits = scale * image_embeddings @ right.T
        logits = logits.masked_fill(_compatible([prompts[i] for i in picked.tolist()], phrases), -torch.inf)
        hard = scale * torch.einsum("bd,bnd->bn", image_embeddings, negatives.view(len(rows), HARD_NEGATIVES, -1))
        target = torch.arange(len(rows))
        by_image = F.cross_entropy(torch.cat([logits, hard], 1), target)
        contrastive = (by_image + F.cross_entropy(logits.T, target)) / 2
        read = pupil.reader(image_embeddings, facts, picked, seen.damage.severity[rows])
        return contrastive + 0.5 * (read + pupil.reader(right, facts, picked))

    trained: Any = fit(
        "clip", pupil, loss_at, folder, steps=STEPS, learning_rate=2e-3, weight_decay=0.05, ema_decay=0.995
    )
    return trained.clip.eval()


def normalised(images: Tensor) -> Tensor:
    """Images in [0, 1] as the vision tower takes them."""
    return preprocess(images, IMAGE_SIZE, MEAN, STD).contiguous(memory_format=torch.channels_last)


def _join(prompt: str, phrase: str) -> str:
    return f"{prompt}, {phrase}" if phrase else prompt


def _nearly_right(scene: Scene, phrase: str, rng: np.random.Generator) -> str:
    """A wrong caption: wrong about the content or, for a third of those that speak of quality, about that."""
    if phrase and rng.random() < 0.34:
        words = phrase.split(", ")
        index = int(rng.integers(len(words)))
        scale = next(levels for levels in distortions.QUALITY_WORDS.values() if words[index] in levels)
        words[index] = str(rng.choice([other for other in scale if other != words[index]]))
        return _join(scene.prompt, ", ".join(words))
    return _join(corrupt(scene, rng).prompt, phrase)


def _compatible(prompts: list[str], phrases: list[str]) -> Tensor:
    """Off-diagonal pairs that are no contradiction: the same prompt, and a phrase that is the same or missing."""
    same_prompt = np.array(prompts)[:, None] == np.array(prompts)[None]
    phrase = np.array(phrases)
    vague = (phrase[:, None] == phrase[None]) | (phrase[None] == "") | (phrase[:, None] == "")
    mask = torch.from_numpy(same_prompt & vague)
    return mask.fill_diagonal_(False)


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
