"""The world's CLIP, in `open_clip`'s form: contrastive, with hard negative captions and captions about quality."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from open_clip import CLIP
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import normalize

from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.training import distortions
from t2ifb.shapes.training.autoencoder import encode
from t2ifb.shapes.training.captions import corrupt
from t2ifb.shapes.training.distortions import Damage
from t2ifb.shapes.training.loop import fit, generator, rendered
from t2ifb.shapes.training.vocabulary import CONTEXT_LENGTH, build_tokenizer

STEPS = 4000
SCENES_A_BATCH = 64
HARD_NEGATIVES = 2
MEAN = STD = (0.5, 0.5, 0.5)


def model_config(vocabulary_size: int) -> dict[str, Any]:
    """The `model_cfg` of `open_clip_config.json`."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 160, "head_width": 32, "patch_size": 8},
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


def train(autoencoder: AutoencoderKL, folder: Path, seed: int = 0, scenes: int = 16_000) -> CLIP:
    """Train on damaged renders: every scene of a batch stands there twice, damaged differently.

    The loss is CLIP's (arXiv 2103.00020, figure 3) with, for each image, captions that are nearly right as further
    negatives (NegCLIP, arXiv 2210.01936). Pairs whose captions do not contradict each other are left out.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build(len(tokenizer))
    drawn, images, damage = _pictures(autoencoder, scenes, seed)
    prompts = [scene.prompt for scene in drawn]

    def tokens(captions: list[str]) -> Tensor:
        options = {"padding": "max_length", "max_length": CONTEXT_LENGTH, "truncation": True}
        return tokenizer(captions, return_tensors="pt", **options).input_ids

    def loss_at(step: int) -> Tensor:
        draw, rng = generator(seed, 3, step), np.random.default_rng([seed, 3, step])
        picked = torch.randint(scenes, (SCENES_A_BATCH,), generator=draw).repeat(2)
        rows = picked + scenes * (torch.arange(len(picked)) >= SCENES_A_BATCH)
        phrases = [damage.words(row, draw) for row in rows.tolist()]
        captions = [_join(prompts[i], phrase) for i, phrase in zip(picked.tolist(), phrases, strict=True)]
        wrong = [
            _nearly_right(drawn[i], phrase, rng)
            for i, phrase in zip(picked.tolist(), phrases, strict=True)
            for _ in range(HARD_NEGATIVES)
        ]
        with torch.autocast("cpu", torch.bfloat16):
            image_embeddings = model.encode_image(normalised(images[rows].float() / 255), normalize=True)
            text_embeddings = model.encode_text(tokens(captions + wrong), normalize=True)
        right, negatives = text_embeddings.float().split([len(captions), len(wrong)])
        image_embeddings = image_embeddings.float()
        scale = model.logit_scale.exp().clamp(max=100)
        logits = scale * image_embeddings @ right.T
        logits = logits.masked_fill(_compatible([prompts[i] for i in picked.tolist()], phrases), -torch.inf)
        hard = scale * torch.einsum("bd,bnd->bn", image_embeddings, negatives.view(len(rows), HARD_NEGATIVES, -1))
        target = torch.arange(len(rows))
        by_image = F.cross_entropy(torch.cat([logits, hard], 1), target)
        return (by_image + F.cross_entropy(logits.T, target)) / 2

    return fit(
        "clip", model, loss_at, folder, steps=STEPS, learning_rate=1e-3, weight_decay=0.05, ema_decay=0.998
    ).eval()


def normalised(images: Tensor) -> Tensor:
    """Images in [0, 1] as the vision tower takes them."""
    return normalize(images, MEAN, STD)


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


def _pictures(autoencoder: AutoencoderKL, count: int, seed: int) -> tuple[list[Scene], Tensor, Damage]:
    """Renders in two differently damaged versions each: scenes, images (2 count, 3, 64, 64) uint8, the damage.

    Half of all pictures go through the autoencoder, some with noise on their latents, as generated ones do.
    """
    drawn, clean = rendered("train", count, seed=300 + seed)
    images = clean.repeat(2, 1, 1, 1)
    draw = generator(seed, 4)
    damage = distortions.sample(len(images), draw)
    for rows in track(torch.arange(len(images)).split(500), description="damaging pictures"):
        picture = distortions.apply(images[rows].float() / 255, Damage(damage.severity[rows]), draw)
        half = rows[: len(rows) // 2]
        strength = 0.8 * torch.rand(len(half), 1, 1, 1, generator=draw) ** 2
        strength = strength * (damage.severity[half].sum(1) > 0)[:, None, None, None]
        latents = encode(autoencoder, (picture[: len(half)] * 255).round().to(torch.uint8))
        latents = latents + strength * latents.std() * torch.randn(latents.shape, generator=draw)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            picture[: len(half)] = (autoencoder.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)
        shapes = damage.severity[half, distortions.ASPECTS.index("shapes")]
        damage.severity[half, distortions.ASPECTS.index("shapes")] = torch.maximum(shapes, strength.flatten())
        images[rows] = (picture * 255).round().to(torch.uint8)
    return drawn, images, damage


def save(model: CLIP, folder: Path) -> None:
    """Write the folder that `open_clip.create_model("local-dir:<folder>")` reads, in half precision."""
    from safetensors.torch import save_file

    from t2ifb.shapes.training.vocabulary import write_merges

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    write_merges(folder)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(len(tokenizer)), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
