"""Adapters for ComfyUI and AUTOMATIC1111, and pipelines with merged weights: the same images as with the adapters."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from t2ifb.diffusion.lora import LORA_WEIGHTS, LoRA, exported_file, save_lora
from t2ifb.diffusion.lora_export import COMFYUI_WEIGHTS, comfyui_weights, save_merged
from t2ifb.diffusion.models import source_of
from tests.diffusion.parts import PROMPTS
from tests.diffusion.tiny_pipelines import FAMILIES, plain_pipeline, tiny_model, write_tiny

RANK, ALPHA = 2, 6.0


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A family, its pipeline, and an export of adapters whose lora_alpha is not their rank."""
    root = tmp_path_factory.mktemp("exported")
    folder = write_tiny(request.param, root / "pipeline")
    model = tiny_model(folder)
    generator = torch.Generator().manual_seed(0)
    for weight in LoRA(RANK, ALPHA).add(model):
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    save_lora(model, root / "export", folder, precision="fp16", guidance_scale=4.5)
    return request.param, folder, root / "export"


def images(pipeline: Any) -> torch.Tensor:
    drawn = pipeline(
        PROMPTS, num_inference_steps=2, guidance_scale=3.0, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found: torch.Tensor = drawn.images
    return found


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_both_files_and_the_merged_pipeline_give_the_same_images(
    exported: tuple[str, Path, Path], tmp_path: Path
) -> None:
    _, folder, export = exported
    pipeline = plain_pipeline(folder)
    base = images(pipeline)
    pipeline.load_lora_weights(str(export))
    tuned = images(pipeline)
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(str(export), weight_name=COMFYUI_WEIGHTS)
    assert difference(base, tuned) > 1e-2
    assert difference(images(pipeline), tuned) < 1e-5
    for name in (LORA_WEIGHTS, COMFYUI_WEIGHTS):
        save_merged(source_of(folder), export / name, tmp_path / name)
        assert difference(images(plain_pipeline(tmp_path / name)), tuned) < 1e-4


def test_names_are_those_that_comfyui_maps(exported: tuple[str, Path, Path]) -> None:
    """`comfy/lora.py`: for U-Nets `lora_unet_` and the layer with _ for each dot, for SD3 `transformer.` and the layer.

    Of a layer x it reads `x.lora_up.weight` and `x.lora_down.weight`, or `x.lora_B.weight` and `x.lora_A.weight`, and
    the scale `x.alpha` / rank, which is 1 without `x.alpha`.
    """
    name, folder, export = exported
    part = "transformer" if name == "sd3" else "unet"
    network = getattr(plain_pipeline(folder), part)
    layers = [key.removesuffix(".weight") for key, weight in network.named_parameters() if key.endswith(".weight")]
    mapped = {f"transformer.{each}" if name == "sd3" else "lora_unet_" + each.replace(".", "_") for each in layers}
    found, own = load_file(export / COMFYUI_WEIGHTS), load_file(export / LORA_WEIGHTS)
    ends = ("lora_A.weight", "lora_B.weight") if name == "sd3" else ("lora_down.weight", "lora_up.weight", "alpha")
    tuned = {key.removesuffix(f".{ends[0]}") for key in found if key.endswith(ends[0])}
    assert tuned <= mapped and len(tuned) == len(own) / 2
    assert found.keys() == {f"{layer}.{end}" for layer in tuned for end in ends}
    alphas = {float(weight) for key, weight in found.items() if key.endswith("alpha")}
    assert alphas == (set() if name == "sd3" else {ALPHA})
    with safe_open(export / COMFYUI_WEIGHTS, "pt") as file:
        assert not file.metadata()


def test_the_documented_names_of_stable_diffusion() -> None:
    layer = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0"
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)}
    found = comfyui_weights(weights, "unet", 2, 6.0, kohya=True)
    stem = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0"
    assert found.keys() == {f"{stem}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert found[f"{stem}.lora_down.weight"].shape == (2, 4) and float(found[f"{stem}.alpha"]) == 6.0


def test_the_card_says_how_to_load_and_names_no_path(exported: tuple[str, Path, Path]) -> None:
    name, folder, export = exported
    card = (export / "README.md").read_text()
    for words in (COMFYUI_WEIGHTS, "ComfyUI", "guidance_scale=4.5", "weights were in fp16"):
        assert words in card
    assert ("safety checker was disabled" in card) == (name == "stable diffusion")
    assert str(export.parent) not in card and str(folder.parent) not in card
    assert re.search(r"SHA-256 [0-9a-f]{16}|files\(\"t2ifb\"\)", card)


def test_a_merged_pipeline_replaces_nothing_and_needs_fitting_adapters(
    exported: tuple[str, Path, Path], tmp_path: Path
) -> None:
    _, folder, export = exported
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="full is not empty; give another folder"):
        save_merged(source_of(folder), exported_file(export), tmp_path / "full")
    weights = load_file(export / LORA_WEIGHTS)
    with safe_open(export / LORA_WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert json.loads(next(iter(metadata.values())))
    wide = {key: torch.cat([each, each], 1) if "lora_A" in key else each for key, each in weights.items()}
    save_file(wide, tmp_path / LORA_WEIGHTS, metadata)
    with pytest.raises(ValueError, match="belongs to another base model"):
        save_merged(source_of(folder), exported_file(tmp_path), tmp_path / "merged")
    save_file({f"other.{key}": each for key, each in weights.items()}, tmp_path / LORA_WEIGHTS, metadata)
    with pytest.raises(ValueError, match="belongs to another family of models: expected names that begin with"):
        save_merged(source_of(folder), exported_file(tmp_path), tmp_path / "merged")
