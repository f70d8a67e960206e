"""Python arguments in messages of the library, as they are typed on the command line."""

import pytest

from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import Components, check
from t2ifb.config.spelling import typed_arguments

ALGORITHM = {
    "_target_": "t2ifb.finetuning.run.FineTuner",
    "model": "${diffusion}",
    "beta": 0.01,
    "judges": "${judges}",
    "lora": {"_target_": "t2ifb.diffusion.lora.LoRA", "rank": 4},
    "algorithm": {"_target_": "t2ifb.finetuning.refl.ReFL", "window": None},
}

OWN = {"_target_": "t2ifb.data.datasets.own_rankings.OwnRankings", "shares": None, "seed": 0}
DIFFUSION = {"_target_": "t2ifb.diffusion.models.stable_diffusion.StableDiffusionSource", "precision": "fp32"}
ENCODER = {"_target_": "t2ifb.scorers.clip.CLIPSource", "model": "ViT-L-14-quickgelu"}
PROMPTS = {"_target_": "t2ifb.data.prompts.PromptSplits", "seed": 0}


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("beta=-1 must be at least 0.", ["algorithm.beta=-1"]),
        ("window=[0, 40] must lie within the steps", ["algorithm.algorithm.window=[0, 40]"]),
        ("use model.precision='fp16', or beta=None.", ["diffusion.precision=fp16", "algorithm.beta=null"]),
        ("Use the original rank (lora.rank=…)", ["algorithm.lora.rank=…"]),
        ("continue it with resume=True", ["resume=true"]),
        ("choose one with reward=…", ["scorer@reward=…"]),
        ("trainer.max_steps is set by the run: give logger=…", ["logger=…"]),
        ("output_dir='a/b': the run in it is finished", ["hydra.run.dir=a/b"]),
        ("give schedule=ddim", ["scheduler=ddim"]),
        ("a mixture needs datasets=… by name", ["+dataset@dataset.datasets.<name>=…"]),
        ("set quick_gelu=False, or model=ViT-L-14", ["+encoder.quick_gelu=false", "encoder.model=ViT-L-14"]),
        ("give model.source='a b/c'", ["diffusion.source=a b/c"]),
        ("the file x/beta=3/y and unknown=4", []),
        ("set other shares=… or another seed=…", ["dataset.shares=…"]),
        ("download it by `python -m t2ifb.prepare beta=3`", []),
        ("no argument at all", []),
    ],
)
def test_a_message_is_followed_by_the_keys_of_the_arguments_that_it_names(message: str, typed: list[str]) -> None:
    config = {"algorithm": ALGORITHM, "diffusion": DIFFUSION, "dataset": OWN, "prompts": PROMPTS, "encoder": ENCODER}
    assert typed_arguments(message, config) == typed


def test_an_argument_is_that_of_the_component_that_the_message_is_about() -> None:
    config = {"algorithm": {"images_per_prompt": 2}, "iteration": {"images_per_prompt": 4, "rounds": 3}}
    message = "images_per_prompt=1 must be from 2 to 9"
    assert typed_arguments(message, config) == ["algorithm.images_per_prompt=1"]
    assert typed_arguments(message, config, "iteration") == ["iteration.images_per_prompt=1"]


def test_advice_of_the_library_can_be_typed() -> None:
    composed = compose_all("train", ["+experiment=refl", "reward.source=x"])[0]
    advice = (
        "model.gradient_checkpointing=True, micro_batch_size=1, algorithm.last_steps=1, "
        "model.decoder_precision='bf16', samples_per_batch=1, model.precision='fp16', diversity=None, "
        "truth=None, lora.rank=8, optimizer.fused=False, "
        "gradient_clip_norm=None, trainer.precision=bf16-mixed"
    )
    text = Components(composed.config).advised(ValueError(advice))
    typed = text.removeprefix(advice).removeprefix(" (on the command line: ").removesuffix(")").split()
    assert len(typed) == 12 and "algorithm.truth=null" in typed and "diffusion.precision=fp16" in typed
    typed.remove("algorithm.algorithm.last_steps=1")  # of DRaFT
    check(compose_all("train", ["+experiment=refl", "reward.source=x", *typed])[0])
