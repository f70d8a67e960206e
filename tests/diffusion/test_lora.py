"""Adapters begin at the base model, are the only thing that learns, and leave in a form that diffusers reads."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from t2ifb.diffusion.lora import (
    LORA_WEIGHTS,
    LoRA,
    adapted_layers,
    adapter_state,
    load_adapter_state,
    load_lora,
    merged,
    save_lora,
    start_adapters,
    untrained,
    without_adapters,
)
from t2ifb.diffusion.model import Guidance
from t2ifb.diffusion.models.stable_diffusion import FAMILY, StableDiffusionSource
from t2ifb.diffusion.pipeline_model import PipelineModel
from t2ifb.diffusion.sampling import Sampler, generate
from t2ifb.shapes.weights import PIPELINE
from t2ifb.utils.files import sha256_file
from tests.diffusion.parts import KEYS, PROMPTS, at, shapes_model


def predict(model: PipelineModel) -> torch.Tensor:
    guidance = Guidance(model.encode([""] * 2), 2.0)
    return model.predict(torch.ones(2, *model.latent_shape), at(500), model.encode(PROMPTS), guidance)


def tuned(lora: LoRA | None = None, precision: str = "fp32") -> PipelineModel:
    """Adapters with B other than zero."""
    model = shapes_model(precision)
    weights = (lora or LoRA()).add(model)
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return model


def test_tuning_begins_at_the_base_model() -> None:
    model = shapes_model()
    before = predict(model)
    weights = LoRA(rank=4, targets=("to_q", "conv1")).add(model)
    assert torch.equal(predict(model), before)
    assert {id(w) for w in model.denoiser.parameters() if w.requires_grad} == {id(w) for w in weights}
    assert any(weight.ndim == 4 for weight in weights)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_base_model_is_the_same_network_with_adapters_off(precision: str) -> None:
    before, model = predict(shapes_model(precision)), tuned(precision=precision)
    after = predict(model)
    assert not torch.equal(after, before)
    with torch.no_grad(), without_adapters(model.denoiser):
        assert torch.equal(predict(model), before)
        with without_adapters(model.denoiser):
            assert torch.equal(predict(model), before)
        assert torch.equal(predict(model), before)
    assert torch.equal(predict(model), after)
    assert {weight.dtype for weight in adapter_state(model.denoiser).values()} == {torch.float32}
    predict(model).sum().backward()
    assert all(w.grad is not None and w.grad.any() for n, w in model.denoiser.named_parameters() if "lora_B" in n)


def test_the_same_seed_gives_the_same_adapters_and_draws_from_no_one() -> None:
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    one, other, third = shapes_model(), shapes_model(), shapes_model()
    LoRA().add(one, seed=1)
    LoRA().add(other, seed=1)
    LoRA().add(third, seed=2)
    assert torch.equal(torch.rand(1), drawn)
    name = next(name for name in adapter_state(one.denoiser) if "lora_A" in name)
    assert torch.equal(adapter_state(one.denoiser)[name], adapter_state(other.denoiser)[name])
    assert not torch.equal(adapter_state(one.denoiser)[name], adapter_state(third.denoiser)[name])


def test_a_state_goes_back_into_adapters_of_the_same_form_only() -> None:
    model = tuned()
    state = {name: weight.clone() for name, weight in adapter_state(model.denoiser).items()}
    fresh = shapes_model()
    LoRA().add(fresh)
    load_adapter_state(fresh.denoiser, state)
    assert torch.equal(predict(fresh), predict(model))
    wider, elsewhere = shapes_model(), shapes_model()
    LoRA(rank=8).add(wider)
    LoRA(targets=("to_q",)).add(elsewhere)
    with pytest.raises(ValueError, match="another rank: .* is \\(4, .* Use the original rank"):
        load_adapter_state(wider.denoiser, state)
    with pytest.raises(ValueError, match="on other layers"):
        load_adapter_state(elsewhere.denoiser, state)


@pytest.mark.parametrize("lora", [LoRA(), LoRA(rank=2, lora_alpha=6.0), LoRA(rank=2, targets=("to_k", "conv2"))])
def test_an_export_gives_the_same_images_in_plain_diffusers(tmp_path: Path, lora: LoRA) -> None:
    model = tuned(lora)
    save_lora(model, tmp_path, PIPELINE)
    source = StableDiffusionSource(str(PIPELINE))
    pipeline = source.pipeline()
    pipeline.load_lora_weights(str(tmp_path))
    plain = PipelineModel(FAMILY, pipeline.components, pipeline.scheduler.config, source)
    sampler = Sampler(4, 3.0)
    theirs = torch.cat(list(generate(plain, sampler, PROMPTS, KEYS))).int()
    ours = torch.cat(list(generate(model, sampler, PROMPTS, KEYS))).int()
    base = torch.cat(list(generate(shapes_model(), sampler, PROMPTS, KEYS))).int()
    assert (theirs - ours).abs().max() <= 1
    assert (ours - base).abs().max() > 10


def test_an_export_has_equal_bytes_and_the_mode_of_any_new_file(tmp_path: Path) -> None:
    model = tuned()
    for number in range(6):
        save_lora(model, tmp_path / str(number), PIPELINE)
    assert len({(tmp_path / str(n) / LORA_WEIGHTS).read_bytes() for n in range(6)}) == 1
    (tmp_path / "new").touch()
    assert (tmp_path / "0" / LORA_WEIGHTS).stat().st_mode == (tmp_path / "new").stat().st_mode


def test_the_cards_code_loads_the_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_lora(tuned(), tmp_path, PIPELINE)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall("```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    pipeline = names["pipeline"]
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(PROMPTS[0], num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
    pipeline.unload_lora_weights()
    base = pipeline(PROMPTS[0], num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
    assert (drawn.images - base.images).abs().max() > 0.04


def test_a_card_names_no_place_on_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(PIPELINE, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    digest = f"mine (SHA-256 {hashlib.sha256(hash_all(folder).encode()).hexdigest()[:16]})"
    single = f"{file.name} (SHA-256 {sha256_file(file)[:16]})"
    sources = {str(folder): digest, "some/model": '"some/model"', str(file): f'from_single_file("<{single}>"'}
    for source, name in sources.items():
        save_lora(tuned(), tmp_path / "export", source)
        card = (tmp_path / "export" / "README.md").read_text()
        assert name in card and str(tmp_path) not in card


def hash_all(folder: Path) -> str:
    return "".join(sha256_file(file) for file in sorted(folder.rglob("*.safetensors")))


def test_adapters_of_another_base_model_are_said_to_be_so(tmp_path: Path) -> None:
    model = tuned()
    save_lora(model, tmp_path, PIPELINE)
    other: Any = shapes_model()
    other.denoiser = UNet2DConditionModel.from_config(dict(model.denoiser.config) | {"cross_attention_dim": 32})
    with pytest.raises(ValueError, match="belongs to another base model"):
        load_lora(other, tmp_path)
    with pytest.raises(ValueError, match="expected a finished fine-tuning run"):
        load_lora(shapes_model(), tmp_path / "nowhere")


def test_what_cannot_be_adapted_is_said() -> None:
    with pytest.raises(ValueError, match="cannot add adapters to to_nowhere"):
        LoRA(targets=("to_nowhere",)).add(shapes_model())
    with pytest.raises(ValueError, match="rank=0"):
        LoRA(rank=0)
    with pytest.raises(ValueError, match="targets is empty"):
        LoRA(targets=())


def test_merged_adapters_give_the_same_output_and_leave_the_weights_as_they_were() -> None:
    model = tuned()
    latents, conditioning = torch.randn(2, *model.latent_shape), model.encode(PROMPTS)
    before = {name: weight.clone() for name, weight in model.denoiser.state_dict().items()}

    def call() -> torch.Tensor:
        return model.predict(latents, at(500), conditioning)

    with torch.no_grad():
        adapted = call()
        with without_adapters(model.denoiser):
            base = call()
            with merged(model.denoiser):  # off stays off
                assert torch.equal(call(), base)
        with merged(model.denoiser):
            together = call()
            assert any(not torch.equal(before[name], weight) for name, weight in model.denoiser.state_dict().items())
            with without_adapters(model.denoiser):
                assert torch.equal(call(), base)
                with without_adapters(model.denoiser):
                    assert torch.equal(call(), base)
                assert torch.equal(call(), base)
            assert torch.equal(call(), together)
    assert float((adapted - base).norm()) > 1e-2 * float(base.norm())
    assert float((together - adapted).norm()) < 1e-4 * float((adapted - base).norm())
    after = model.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in model.denoiser.named_parameters())


def test_adapters_come_back_after_an_error() -> None:
    model = tuned()
    latents, conditioning = torch.randn(1, *model.latent_shape), model.encode(PROMPTS[:1])
    with torch.no_grad():
        adapted = model.predict(latents, at(500, 1), conditioning)
        for context in (merged, without_adapters):
            with pytest.raises(ValueError, match="within"), context(model.denoiser):
                raise ValueError("within")
            assert torch.equal(model.predict(latents, at(500, 1), conditioning), adapted)


def test_untrained_calls_merge_in_fp32_and_leave_autocast_in_half_precision() -> None:
    for precision, merges in (("fp32", True), ("bf16", False)):
        model = tuned(precision=precision)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), untrained(model.denoiser):
            assert all(layer.disable_adapters is merges for layer in adapted_layers(model.denoiser))
            assert torch.is_autocast_enabled("cpu") is merges


def test_layers_are_found_again_when_adapters_are_added(tmp_path: Path) -> None:
    save_lora(tuned(), tmp_path, PIPELINE)
    one, other = shapes_model(), shapes_model()
    assert adapted_layers(one.denoiser) == adapted_layers(other.denoiser) == []
    LoRA().add(one)
    load_lora(other, tmp_path)
    assert len(adapted_layers(one.denoiser)) == len(adapted_layers(other.denoiser)) > 0
    assert adapted_layers(one.denoiser) is adapted_layers(one.denoiser)  # no second walk


def test_exported_adapters_are_the_start_of_others(tmp_path: Path) -> None:
    lora = LoRA(rank=2, lora_alpha=4, targets=["to_q", "conv1"])
    first, second = tuned(lora), shapes_model()
    (export := tmp_path / "export").mkdir()
    save_lora(first, export, PIPELINE)
    weights = lora.add(second, seed=9)
    start_adapters(second, tmp_path)
    assert torch.equal(predict(second), predict(first))
    with without_adapters(second.denoiser):
        assert torch.equal(predict(second), predict(shapes_model()))
    assert all(weight.requires_grad for weight in weights)


@pytest.mark.parametrize("lora", [LoRA(), LoRA(2, 2, ["to_q", "conv1"]), LoRA(2, 4)])
def test_a_start_of_another_form_is_refused(tmp_path: Path, lora: LoRA) -> None:
    save_lora(tuned(LoRA(2, 4, ["to_q", "conv1"])), tmp_path, PIPELINE)
    model = shapes_model()
    lora.add(model)
    with pytest.raises(ValueError, match=r"give lora=LoRA\(rank=2, lora_alpha=4, targets=\['conv1', 'to_q'\]\)$"):
        start_adapters(model, tmp_path)


def test_a_start_that_says_nothing_of_itself_is_refused(tmp_path: Path) -> None:
    model = tuned()
    with pytest.raises(ValueError, match=f"has no {LORA_WEIGHTS}: expected a finished fine-tuning run"):
        start_adapters(model, tmp_path)
    save_file(adapter_state(model.denoiser), tmp_path / LORA_WEIGHTS)
    with pytest.raises(ValueError, match="does not say how its adapters were made: expected the export of a"):
        start_adapters(model, tmp_path)


def test_layers_are_found_again_when_adapters_are_added_or_deleted_by_peft_itself() -> None:
    model = tuned(LoRA(targets=["to_q"]))
    first = len(adapted_layers(model.denoiser))
    model.denoiser.add_adapter(LoraConfig(target_modules=["to_k"]), adapter_name="other")
    assert len(adapted_layers(model.denoiser)) == 2 * first
    model.denoiser.delete_adapters("default")
    assert adapted_layers(model.denoiser) == [
        layer for layer in model.denoiser.modules() if isinstance(layer, BaseTunerLayer)
    ]


def test_adapters_of_another_family_are_said_to_be_so(tmp_path: Path) -> None:
    state = {f"transformer.{name}": weight for name, weight in adapter_state(tuned().denoiser).items()}
    save_file(state, tmp_path / LORA_WEIGHTS)
    with pytest.raises(ValueError, match="belongs to another family of models: expected adapters of a StableDiff"):
        load_lora(shapes_model(), tmp_path)
