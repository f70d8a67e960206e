"""Checkpoints of BLIP and ImageReward with random weights, and the networks written out once more to compare with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear

from t2ifb.scorers import BLIPScore, ImageReward
from tests.conftest import real_data

HEADS = 4
"""Of the text tower of small checkpoints."""
Scorer = type[ImageReward | BLIPScore]
Computation = Callable[..., Tensor]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "and", "##s", "two"]


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep activations of a reasonable size in every geometry."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[-1]).expand(1, -1).clone()
            continue
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            state[name] = 0.1 * noise + (1 if "norm" in name.lower() and name.endswith("weight") else 0)
        else:
            fan_in = noise[0].numel() if "embed" not in name and "token" not in name else 1
            state[name] = noise * (1.2 / fan_in**0.5 if fan_in > 1 else 0.5)
    return state


def image_reward_shapes(
    width: int = 128, depth: int = 2, side: int = 3, patch: int = 8, hidden: int = 48, layers: int = 2
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small `ImageReward.pt`."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual_encoder.cls_token": (1, 1, width),
        "visual_encoder.pos_embed": (1, side * side + 1, width),
        "visual_encoder.patch_embed.proj.weight": (width, 3, patch, patch),
        "visual_encoder.patch_embed.proj.bias": (width,),
        "text_encoder.embeddings.position_ids": (1, 40),
        "text_encoder.embeddings.word_embeddings.weight": (len(WORDS) + 2, hidden),
        "text_encoder.embeddings.position_embeddings.weight": (40, hidden),
    }

    def affine(name: str, out: int, into: int | None = None) -> None:
        shapes[f"{name}.weight"] = (out,) if into is None else (out, into)
        shapes[f"{name}.bias"] = (out,)

    for n in range(depth):
        block = f"visual_encoder.blocks.{n}"
        affine(f"{block}.norm1", width)
        affine(f"{block}.attn.qkv", 3 * width, width)
        affine(f"{block}.attn.proj", width, width)
        affine(f"{block}.norm2", width)
        affine(f"{block}.mlp.fc1", 2 * width, width)
        affine(f"{block}.mlp.fc2", width, 2 * width)
    affine("visual_encoder.norm", width)
    affine("text_encoder.embeddings.LayerNorm", hidden)
    for n in range(layers):
        layer = f"text_encoder.encoder.layer.{n}"
        for attention, source in (("attention", hidden), ("crossattention", width)):
            affine(f"{layer}.{attention}.self.query", hidden, hidden)
            affine(f"{layer}.{attention}.self.key", hidden, source)
            affine(f"{layer}.{attention}.self.value", hidden, source)
            affine(f"{layer}.{attention}.output.dense", hidden, hidden)
            affine(f"{layer}.{attention}.output.LayerNorm", hidden)
        affine(f"{layer}.intermediate.dense", 2 * hidden, hidden)
        affine(f"{layer}.output.dense", hidden, 2 * hidden)
        affine(f"{layer}.output.LayerNorm", hidden)
    affine("vision_proj", 10, width)
    affine("text_proj", 10, hidden)
    named = {f"blip.{name}": shape for name, shape in shapes.items()}
    for number, out, into in ((0, 1024, hidden), (2, 128, 1024), (4, 64, 128), (6, 16, 64), (7, 1, 16)):
        named |= {f"mlp.layers.{number}.weight": (out, into), f"mlp.layers.{number}.bias": (out,)}
    return named


def write_small(folder: Path, seed: int = 0, heads: int = HEADS) -> Path:
    """A small `ImageReward.pt` and the `model_large.pth` with its towers, `med_config.json` and `vocab.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = random_state(image_reward_shapes(), seed)
    torch.save(state, folder / "ImageReward.pt")
    towers = {name.removeprefix("blip."): tensor for name, tensor in state.items() if name.startswith("blip.")}
    torch.save({"model": towers}, folder / "model_large.pth")
    (folder / "med_config.json").write_text(json.dumps({"num_attention_heads": heads, "layer_norm_eps": 1e-12}))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder / "ImageReward.pt"


class Reference:
    """BLIP as its paper and its configuration describe it, on a state with the original names.

    Args:
        state: Without the prefix `blip.`.
        heads: Of the text tower.
    """

    def __init__(self, state: Mapping[str, Tensor], heads: int) -> None:
        self.state, self.heads = state, heads

    def affine(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
        scores = split[0] @ split[1].mT / split[0].shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[:, None, None], -torch.inf)
        return (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)

    def image(self, pixels: Tensor) -> Tensor:
        name = "visual_encoder"
        weight = self.state[f"{name}.patch_embed.proj.weight"]
        x = conv2d(pixels, weight, self.state[f"{name}.patch_embed.proj.bias"], stride=weight.shape[-1])
        x = torch.cat([self.state[f"{name}.cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1)
        x = x + self.state[f"{name}.pos_embed"]
        for n in range(99):
            block = f"{name}.blocks.{n}"
            if f"{block}.norm1.weight" not in self.state:
                break
            qkv = self.affine(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
            x = x + self.affine(self.attend(*qkv, x.shape[-1] // 64, None), f"{block}.attn.proj")
            y = gelu(self.affine(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self.affine(y, f"{block}.mlp.fc2")
        return self.norm(x, f"{name}.norm", 1e-6)

    def text(self, ids: Tensor, mask: Tensor, image: Tensor | None = None) -> Tensor:
        name = "text_encoder.embeddings"
        x = self.state[f"{name}.word_embeddings.weight"][ids]
        x = self.norm(x + self.state[f"{name}.position_embeddings.weight"][: ids.shape[1]], f"{name}.LayerNorm", 1e-12)
        for n in range(99):
            layer = f"text_encoder.encoder.layer.{n}"
            if f"{layer}.output.dense.weight" not in self.state:
                break
            for attention, source, seen in (("attention", x, mask), ("crossattention", image, None)):
                if source is None:
                    continue
                source = x if attention == "attention" else source
                parts = [
                    self.affine(y, f"{layer}.{attention}.self.{part}")
                    for y, part in ((x, "query"), (source, "key"), (source, "value"))
                ]
                y = self.affine(self.attend(*parts, self.heads, seen), f"{layer}.{attention}.output.dense")
                x = self.norm(x + y, f"{layer}.{attention}.output.LayerNorm", 1e-12)
            y = self.affine(gelu(self.affine(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
            x = self.norm(x + y, f"{layer}.output.LayerNorm", 1e-12)
        return x[:, 0]


def reference_reward(state: Mapping[str, Tensor], heads: int, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """ImageReward's reward, from the tensors of `ImageReward.pt`."""
    blip = Reference({n.removeprefix("blip."): t for n, t in state.items()}, heads)
    x = blip.text(ids, mask, blip.image(pixels))
    for number in (0, 2, 4, 6, 7):
        x = blip.affine(x, f"mlp.layers.{number}")
    return (x.squeeze(-1) - 0.16717362830052426) / 1.0333394966054072


def reference_cosine(state: Mapping[str, Tensor], heads: int, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """BLIP Score, from the tensors of `ImageReward.pt`."""
    blip = Reference({n.removeprefix("blip."): t for n, t in state.items()}, heads)
    image = blip.affine(blip.image(pixels)[:, 0], "vision_proj")
    return torch.cosine_similarity(image, blip.affine(blip.text(ids, mask), "text_proj"))


def tokens(count: int, vocabulary: int, length: int = 9) -> tuple[Tensor, Tensor]:
    """Ids and mask of at most four texts of different lengths."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, vocabulary, (count, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([length, 4, 6, 2])[:count, None]).long()
    return ids * mask, mask


def check_network(scorer: Scorer, reference: Computation, checkpoint: Path) -> None:
    """Compare a scorer of a small checkpoint with the network written out once more."""
    state = torch.load(checkpoint, weights_only=True)
    pixels, (ids, mask) = torch.randn(4, 3, 24, 24), tokens(4, 15)
    built = scorer.from_checkpoint(checkpoint, checkpoint.with_name("med_config.json"))
    scores = built.score_tokens(pixels, ids, mask)
    assert scores.std() > 0.01  # else anything agrees with anything
    torch.testing.assert_close(scores, reference(state, HEADS, pixels, ids, mask), rtol=1e-4, atol=1e-6)


def check_full_geometry(scorer: Scorer, reference: Computation, folder: Path) -> None:
    """The same for a file in the published layout."""
    layout = json.loads(real_data("imagereward_checkpoint_layout.json").read_text())
    state = random_state({name: tuple(shape) for name, shape in layout.items()})
    torch.save(state, folder / "ImageReward.pt")
    pixels, (ids, mask) = torch.randn(2, 3, 224, 224), tokens(2, 30_522, 35)
    with torch.inference_mode():
        scores = scorer.from_checkpoint(folder / "ImageReward.pt").score_tokens(pixels, ids, mask)
        torch.testing.assert_close(scores, reference(state, 12, pixels, ids, mask), rtol=1e-4, atol=1e-5)
