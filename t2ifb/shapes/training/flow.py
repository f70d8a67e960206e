"""Text-to-image model: a small Stable Diffusion 3, a rectified flow with a transformer (arXiv 2403.03206).

Autoencoder, tokenizer and first text encoder are those of the world's U-Net and stay frozen. The second text encoder is
smaller and is trained together with the transformer. There is no T5.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from t2ifb.shapes.training.autoencoder import encode
from t2ifb.shapes.training.loop import averaged, fast_autocast, fit, generator, rendered
from t2ifb.shapes.training.vocabulary import CONTEXT_LENGTH
from t2ifb.shapes.weights import FLOW_T5_TOKENS
from t2ifb.utils.files import atomic_write

NAME = "flow"
STEPS = 12_000
BATCH = 32
LEARNING_RATE = 2e-3
HEADS, HEAD_WIDTH, LAYERS = 4, 32, 4
SECOND_WIDTH = 64
"""Width of the second text encoder."""
CONDITION_DROPOUT = 0.1
TRAIN_TIMESTEPS = 1000


class Prompts(NamedTuple):
    """N encoded prompts.

    Attributes:
        states: (N, L, D), penultimate states of the first text encoder.
        pooled: (N, P), its embeddings.
        token_ids: (N, L), tokens for the second text encoder.
    """

    states: Tensor
    pooled: Tensor
    token_ids: Tensor

    def of(self, rows: Tensor) -> "Prompts":
        """Some of the prompts."""
        return Prompts(self.states[rows], self.pooled[rows], self.token_ids[rows])


class TextToFlow(nn.Module):
    """Transformer and second text encoder, trained jointly."""

    def __init__(self, first: CLIPTextConfig) -> None:
        """Build untrained networks.

        Args:
            first: Configuration of the first text encoder.
        """
        super().__init__()
        sizes = {"hidden_size": SECOND_WIDTH, "projection_dim": SECOND_WIDTH, "intermediate_size": 4 * SECOND_WIDTH}
        second = first.to_dict() | sizes | {"num_hidden_layers": 2, "num_attention_heads": 2, "dtype": None}
        self.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(second))
        self.transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=LAYERS,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            caption_projection_dim=HEADS * HEAD_WIDTH,
            joint_attention_dim=first.hidden_size + SECOND_WIDTH,
            pooled_projection_dim=first.projection_dim + SECOND_WIDTH,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )
        start_as_identity(self.transformer)

    def forward(self, noisy: Tensor, sigma: Tensor, prompts: Prompts) -> Tensor:
        """Predict the velocity, noise minus latents, in latents (B, 4, 16, 16) with noise of share `sigma` (B,)."""
        second = self.text_encoder_2(input_ids=prompts.token_ids, output_hidden_states=True)
        states = torch.cat([prompts.states, second.hidden_states[-2]], -1)
        velocity: Tensor = self.transformer(
            hidden_states=noisy,
            timestep=sigma * TRAIN_TIMESTEPS,
            encoder_hidden_states=F.pad(states, (0, 0, 0, FLOW_T5_TOKENS)),
            pooled_projections=torch.cat([prompts.pooled, second.text_embeds], -1),
            return_dict=False,
        )[0]
        return velocity


def start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """Let all blocks start as the identity, and the output as zero (adaLN-Zero, arXiv 2212.09748, section 3.2)."""
    blocks = [norm for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for layer in (*(norm.linear for norm in (*blocks, transformer.norm_out)), transformer.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def first_encoder(base: StableDiffusionPipeline) -> CLIPTextModelWithProjection:
    """The text encoder of the world's U-Net in the class that Stable Diffusion 3 has; it projects by the identity."""
    encoder = CLIPTextModelWithProjection(base.text_encoder.config)
    encoder.text_model.load_state_dict(base.text_encoder.state_dict())
    with torch.no_grad():
        encoder.text_projection.weight.copy_(torch.eye(len(encoder.text_projection.weight)))
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def encode_prompts(encoder: CLIPTextModelWithProjection, tokenizer: Any, prompts: list[str]) -> Prompts:
    """The first text encoder's output for N prompts, and the tokens of both."""
    ids = tokenizer(prompts, padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt").input_ids
    outputs = [encoder(input_ids=some, output_hidden_states=True) for some in ids.split(256)]
    states = torch.cat([output.hidden_states[-2] for output in outputs])
    return Prompts(states, torch.cat([output.text_embeds for output in outputs]), ids)


def untrained(base: StableDiffusionPipeline, seed: int) -> TextToFlow:
    """The networks before the first step."""
    torch.manual_seed(seed)
    return TextToFlow(base.text_encoder.config)


def train(base: StableDiffusionPipeline, folder: Path, seed: int = 0, images: int = 16_000) -> StableDiffusion3Pipeline:
    """Train on latents of clean renders of training scenes, by the rectified-flow loss with logit-normal times.

    Args:
        base: The world's U-Net with its autoencoder, tokenizer and text encoder.
        folder: Folder of the training state and of the latents.
        seed: Random seed.
        images: Number of renders.
    """
    latents, captions = examples(base, folder / f"{NAME}_examples.pt", seed, images)
    texts = list(dict.fromkeys(["", *captions]))
    row_of = {text: row for row, text in enumerate(texts)}
    rows = torch.tensor([row_of[caption] for caption in captions])
    prompts = encode_prompts(first_encoder(base), base.tokenizer, texts)
    model = untrained(base, seed)
    standardise(model.transformer.context_embedder, prompts.states)

    def loss_at(step: int) -> Tensor:
        draw = generator(seed, 10, step)
        index = torch.randint(len(latents), (BATCH,), generator=draw)
        sigma = noise_levels(BATCH, draw)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=draw)
        dropped = torch.rand(BATCH, generator=draw) < CONDITION_DROPOUT
        noisy = torch.lerp(latents[index], noise, sigma[:, None, None, None])
        with fast_autocast():
            velocity = model(noisy, sigma, prompts.of(torch.where(dropped, 0, rows[index]))).float()
        return F.mse_loss(velocity, noise - latents[index])

    trained: Any = fit(NAME, model, loss_at, folder, steps=STEPS, learning_rate=LEARNING_RATE, ema_decay=0.999)
    return assembled(base, trained)


def unfinished(base: StableDiffusionPipeline, folder: Path, seed: int = 0) -> StableDiffusion3Pipeline:
    """The pipeline with the averaged weights of the last step that an unfinished training saved.

    Raises:
        ValueError: The folder has no such training.
    """
    trained: Any = averaged(NAME, untrained(base, seed), folder)
    return assembled(base, trained)


def assembled(base: StableDiffusionPipeline, trained: TextToFlow) -> StableDiffusion3Pipeline:
    """The pipeline of trained networks and of the parts that come from the U-Net's."""
    vae = deepcopy(base.vae)
    vae.register_to_config(shift_factor=0.0)  # the pipeline needs a number
    return StableDiffusion3Pipeline(
        transformer=trained.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=1.0),
        vae=vae,
        text_encoder=first_encoder(base),
        tokenizer=base.tokenizer,
        text_encoder_2=trained.text_encoder_2.eval(),
        tokenizer_2=base.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


@torch.no_grad()
def standardise(layer: nn.Linear, states: Tensor) -> None:
    """Let a layer start as if its first D inputs were standardised; a few of them are 30 times larger than the others.

    Args:
        layer: Linear layer with at least D inputs, changed in place.
        states: Examples (N, L, D) of the first D inputs.
    """
    mean, deviation = states.mean((0, 1)), states.std((0, 1))
    some = layer.weight[:, : len(mean)]
    some /= deviation.clamp(min=1e-6)
    layer.bias.sub_(some @ mean)


def noise_levels(count: int, draw: torch.Generator) -> Tensor:
    """Levels (`count`,) in (0, 1) with a logit-normal density (arXiv 2403.03206, equation 19).

    Each of `count` equally likely intervals has one of them, so that the loss of a batch varies less.
    """
    quantiles = (torch.arange(count) + torch.rand(count, generator=draw)) / count
    return torch.special.ndtri(quantiles.clamp(1e-6, 1 - 1e-6)).sigmoid()


def examples(base: StableDiffusionPipeline, file: Path, seed: int, count: int) -> tuple[Tensor, list[str]]:
    """Scaled latents (`count`, 4, 16, 16) of renders and their prompts, stored in a file and reused."""
    if not file.exists():
        scenes, _, pixels = rendered("train", count, seed=400 + seed)
        latents = encode(base.vae, pixels, batch=16) * base.vae.config.scaling_factor
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as opened:
            torch.save({"latents": latents, "prompts": [scene.prompt for scene in scenes]}, opened)
    stored = torch.load(file, weights_only=True)
    return stored["latents"], stored["prompts"]
