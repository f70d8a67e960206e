"""Independent judges of the `shapes` domain: a small BLIP, a small ImageReward on it, and an aesthetic predictor.

They are trained on rankings and ratings of prompts that the reward model's data set excludes, and BLIP and ImageReward
have their own towers. ImageReward starts with BLIP's text tower and learns to see on pictures with known faults (see
`grounding`), then from rankings. All are saved in the formats of the published checkpoints.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertTokenizer

from t2ifb.scorers.aesthetic_score import AestheticHead
from t2ifb.scorers.blip import BLIP
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import linear_stack
from t2ifb.scorers.image_reward import MEAN, STD
from t2ifb.shapes import annotators, weights
from t2ifb.shapes.samples import make_images
from t2ifb.shapes.training import grounding
from t2ifb.shapes.training.auxiliary import SceneReader
from t2ifb.shapes.training.contrastive import CaptionedPictures
from t2ifb.shapes.training.grounding import Batch, Groups, Readers
from t2ifb.shapes.training.loop import fast_autocast, fit, generator
from t2ifb.shapes.training.vocabulary import bert_words

STEPS = {"blip": 1600, "vision": 2200, "grounding": 1600, "image_reward": 400, "aesthetic": 400}
PROJECTED = 128
HEADS = 4
"""Number of attention heads of the text tower."""
PROMPTS_A_BATCH = 24
GROUPS_A_BATCH = {"vision": 4, "grounding": 6, "image_reward": 3}
GROUNDING_WEIGHT = 0.5
"""Weight of the loss on pictures with known faults while ImageReward is tuned on rankings."""


@dataclass(frozen=True)
class Ranked:
    """Rankings of N images in memory.

    Attributes:
        images: (N, 3, 64, 64) uint8.
        prompts: N prompts.
        ranks: (N,), 1 is best within a ranking.
        fidelity: (N,), ratings from 1 to 7.
        ranking: (N,), index of the image's ranking, from 0.
    """

    images: Tensor
    prompts: list[str]
    ranks: Tensor
    fidelity: Tensor
    ranking: Tensor

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Comparisons among the given rows: positions in `rows` of the better and the worse images."""
        ranking, ranks = self.ranking[rows], self.ranks[rows]
        better = (ranking[:, None] == ranking) & (ranks[:, None] < ranks)
        first, second = better.nonzero().unbind(1)
        return first, second


def rankings(split: str, folder: Path, seed: int) -> Ranked:
    """Annotated images of prompts that are not in the reward model's data set."""
    settings = annotators.WorldSettings(
        annotators.JUDGES_PROMPTS,
        annotators.IMAGES_PER_PROMPT,
        annotators.NOISE,
        annotators.TIE_WIDTH,
        annotators.JUDGES_SEED + seed,
    )
    jobs = annotators.judges_jobs(split, seed)
    make_images(jobs, folder)
    tally = annotators.Tally()
    records = [record for job in jobs for record in annotators.annotate(job, folder, settings, tally)]
    ids = {name: number for number, name in enumerate(dict.fromkeys(record.prompt_id for record in records))}
    pixels = np.stack([np.asarray(record.image) for record in records])
    return Ranked(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        prompts=[record.prompt for record in records],
        ranks=torch.tensor([record.rank for record in records]),
        fidelity=torch.tensor([float(record.fidelity_rating) for record in records]),
        ranking=torch.tensor([ids[record.prompt_id] for record in records]),
    )


class Words:
    """BERT vocabulary of the `shapes` domain, with one token per word."""

    def __init__(self) -> None:
        self.words = bert_words()
        self._tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(self.words)})

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, (B, L) each."""
        batch = self._tokenizer(texts, padding=True, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]


def untrained_blip(words: int, spread: float = 0.02) -> BLIP:
    """Build an untrained BLIP (about 1.7 million weights, original proportions) with ids for [DEC] and [ENC].

    Args:
        words: Number of words.
        spread: Standard deviation of the image tower's weights.
    """
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 8, "layer_norm_eps": 1e-6, "initializer_range": spread,
    }  # fmt: skip
    text = {
        "vocab_size": words + 2, "hidden_size": 128, "encoder_hidden_size": 128, "intermediate_size": 512,
        "num_hidden_layers": 3, "num_attention_heads": HEADS, "max_position_embeddings": 35, "layer_norm_eps": 1e-12,
        "bos_token_id": None, "sep_token_id": None,
    }  # fmt: skip
    return BLIP(vision, text, PROJECTED)


class BLIPPupil(nn.Module):
    """BLIP during contrastive training."""

    def __init__(self, words: Words) -> None:
        """Build untrained towers."""
        super().__init__()
        self.blip = untrained_blip(len(words.words))
        self.reader = SceneReader(PROJECTED)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._words = words

    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings of images in [0, 1]."""
        states = self.blip.image_states(self.blip.to_pixels(images))
        return F.normalize(self.blip.vision_proj(states[:, 0]).float(), dim=-1)

    def embed_captions(self, captions: list[str]) -> Tensor:
        """Embeddings of texts."""
        return F.normalize(self.blip.text_proj(self.blip.text_state(*self._words(captions))).float(), dim=-1)

    def scale(self) -> Tensor:
        """Factor on cosines."""
        return self.log_scale.exp()


class RewardPupil(nn.Module):
    """ImageReward during training."""

    def __init__(self, blip: BLIP, words: Words) -> None:
        """Start with BLIP's text tower, a new image tower and a new head."""
        super().__init__()
        fresh = untrained_blip(len(words.words), spread=0.06)
        fresh.vision.embeddings.position_embedding.data[:, 1:] = 0.5 * grounding.position_code(PROJECTED)
        blip.vision.load_state_dict(fresh.vision.state_dict())
        self.blip, self.head = blip, linear_stack(blip.text_proj.in_features)
        self.readers = Readers(blip.vision_proj.in_features, blip.text_proj.in_features)
        self._words = words

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Raw rewards (B,) of images (B, 3, 64, 64), uint8."""
        states = self.blip.image_states(self.blip.to_pixels(images.float() / 255))
        rewards: Tensor = self.head(self.blip.text_state(*self._words(prompts), states)).squeeze(-1)
        return rewards.float()

    def vision_loss(self, batch: Batch) -> Tensor:
        """Loss of what the image tower sees."""
        with fast_autocast(), sdpa_kernel(SDPBackend.MATH):
            return grounding.vision_loss(self.blip, self.readers, batch)[1]

    def grounding_loss(self, batch: Batch) -> Tensor:
        """Loss of what both towers see, and of the order of pictures with known faults."""
        tokens = self._words(batch.questions.prompts)
        with fast_autocast(), sdpa_kernel(SDPBackend.MATH):
            return grounding.loss(self.blip, self.head, self.readers, tokens, batch)


def train_blip(folder: Path, seed: int, scenes_: int = 12_000) -> BLIP:
    """Train contrastively like the shapes CLIP, with other towers and captions."""
    torch.manual_seed(1000 + seed)
    pupil = BLIPPupil(Words())
    lesson = CaptionedPictures(folder, seed, scenes_)
    trained: Any = fit(
        "blip", pupil, lambda step: lesson.loss(pupil, 1_000_000 + step), folder, steps=STEPS["blip"],
        learning_rate=1.5e-3, weight_decay=0.05, ema_decay=0.99,
    )  # fmt: skip
    return trained.blip.eval()


def train_image_reward(blip: BLIP, ranked: Ranked, folder: Path, seed: int) -> RewardPupil:
    """Train on pictures with known faults, then tune on rankings, and standardise the rewards.

    The loss of rankings is Bradley-Terry's (arXiv 2304.05977, section 3.2).
    """
    torch.manual_seed(2000 + seed)
    pupil, count = RewardPupil(blip.train().requires_grad_(True), Words()), int(ranked.ranking.max()) + 1
    groups = Groups(seed)

    def pictures(stage: str, step: int) -> Batch:
        return groups.batch(list(STEPS).index(stage) * 1_000_000 + step, GROUPS_A_BATCH[stage])

    def tuning_loss(step: int) -> Tensor:
        chosen = torch.randperm(count, generator=generator(seed, 8, step))[:PROMPTS_A_BATCH]
        rows = torch.isin(ranked.ranking, chosen).nonzero().flatten()
        with fast_autocast(), sdpa_kernel(SDPBackend.MATH):
            rewards = pupil(ranked.images[rows], [ranked.prompts[row] for row in rows.tolist()])
        better, worse = ranked.pairs(rows)
        learned = GROUNDING_WEIGHT * pupil.grounding_loss(pictures("image_reward", step))
        return learned - F.logsigmoid(rewards[better] - rewards[worse]).mean()

    stages: dict[str, tuple[Callable[[int], Tensor], float, float]] = {
        "vision": (lambda step: pupil.vision_loss(pictures("vision", step)), 1.5e-3, 0.98),
        "grounding": (lambda step: pupil.grounding_loss(pictures("grounding", step)), 1e-3, 0.99),
        "image_reward": (tuning_loss, 3e-4, 0.98),
    }
    for stage, (loss_at, rate, decay) in stages.items():
        trained = fit(stage, pupil, loss_at, folder, steps=STEPS[stage], learning_rate=rate, ema_decay=decay)
        pupil.load_state_dict(trained.state_dict())
    return _standardised(pupil.eval(), ranked)


def train_aesthetic(ranked: Ranked, folder: Path, seed: int) -> AestheticHead:
    """Fit the annotators' fidelity ratings from CLIP embeddings by least squares."""
    torch.manual_seed(3000 + seed)
    encoder = CLIPSource(f"local-dir:{weights.CLIP}", device="cpu").load()
    with torch.no_grad():
        embeddings = torch.cat([encoder.encode_images(some.float() / 255) for some in ranked.images.split(256)])
    head = AestheticHead(encoder.embedding_dim)

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(embeddings), (512,), generator=generator(seed, 9, step))
        return F.mse_loss(head(embeddings[rows]), ranked.fidelity[rows])

    trained: Any = fit("aesthetic", head, loss_at, folder, steps=STEPS["aesthetic"], learning_rate=1e-3, ema_decay=0.98)
    return trained.eval()


@torch.no_grad()
def _standardised(pupil: RewardPupil, ranked: Ranked) -> RewardPupil:
    """Adapt the last layer so that the published standardisation gives mean 0 and deviation 1 on these images."""
    batches = torch.arange(len(ranked.prompts)).split(256)
    rewards = torch.cat([pupil(ranked.images[rows], [ranked.prompts[row] for row in rows]) for rows in batches])
    last: Any = pupil.head[-1]
    factor = STD / rewards.std()
    last.bias.copy_((last.bias - rewards.mean()) * factor + MEAN)
    last.weight.mul_(factor)
    return pupil


def save(state: Mapping[str, Tensor], file: Path) -> None:
    """Write a checkpoint in half precision, with configuration and vocabulary for models with a BERT."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().half().contiguous() for name, tensor in state.items()}, file)
    if any("text_encoder." in name for name in state):
        config = {"num_attention_heads": HEADS, "layer_norm_eps": 1e-12}
        (file.parent / "med_config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
        (file.parent / "vocab.txt").write_text("\n".join(bert_words()) + "\n", encoding="utf-8")


def train(state: Path, seed: int) -> None:
    """Train all three judges and install them in the package."""
    blip = train_blip(state, seed)
    save(blip.original_state(), weights.BLIP / "blip.safetensors")
    ranked = rankings("train", state / "ranked", seed)
    pupil = train_image_reward(blip, ranked, state, seed)
    tensors = {f"blip.{name}": tensor for name, tensor in pupil.blip.original_state().items()}
    tensors |= {f"mlp.layers.{name}": tensor for name, tensor in pupil.head.state_dict().items()}
    save(tensors, weights.IMAGE_REWARD / "image_reward.safetensors")
    save(train_aesthetic(ranked, state, seed).state_dict(), weights.AESTHETIC / "aesthetic.safetensors")
