"""`make world`: train all models of the `shapes` domain from scratch and install the weights in the package."""

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline

from t2ifb.scorers import AestheticScore, BLIPScore, ImageReward
from t2ifb.scorers.clip import CLIPSource
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.training import autoencoder, cards, diffusion, encoder, flow, judges, tuned
from t2ifb.shapes.weights import (
    AESTHETIC,
    BLIP,
    CLIP,
    FLOW,
    FLOW_T5_TOKENS,
    IMAGE_REWARD,
    PIPELINE,
    TUNED,
    load_flow,
    load_pipeline,
)
from t2ifb.utils.devices import fast_cpu_dtype

PARTS = ("autoencoder", "diffusion", "clip", "judges", "flow", "tuned", "cards")
"""Training order; each part needs the earlier ones."""


def main() -> None:
    """Train all parts in order, then write the model cards."""
    parser = argparse.ArgumentParser(prog="python -m t2ifb.shapes.training", description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="train one part only (the earlier ones must exist)")
    parser.add_argument("--state", type=Path, default=Path("outputs/world"), help="folder for unfinished training")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument(
        "--unfinished", action="store_true", help="with --part flow: install what an unfinished training saved last"
    )
    arguments = parser.parse_args()
    if arguments.unfinished and arguments.part != "flow":
        parser.error("--unfinished needs --part flow")
    for part in [arguments.part] if arguments.part else PARTS:
        started = time.monotonic()
        state = arguments.state / f"seed{arguments.seed}"
        if arguments.unfinished:
            try:
                unfinished = flow.unfinished(load_pipeline(torch.float32), state, arguments.seed)
            except ValueError as error:
                parser.error(str(error))
            install_flow(unfinished, arguments.seed)
        else:
            make_part(part, state, arguments.seed)
        print(f"{part}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def make_part(part: str, state: Path, seed: int) -> None:
    """Train one part, unless `state` says that it is finished."""
    finished = state / f"{part}.finished"
    if part == "cards":
        write_cards(state, seed)
        return
    if finished.exists():
        print(f"{part}: already finished; delete {state} to train everything again.")
        return
    state.mkdir(parents=True, exist_ok=True)
    if part == "autoencoder":
        autoencoder.train(state, seed).save_pretrained(state / "vae")
    elif part == "diffusion":
        vae = AutoencoderKL.from_pretrained(state / "vae").eval()
        vae.register_to_config(_name_or_path="vae")  # not its path on this machine
        diffusion.train(vae, state, seed).to(torch.float16).save_pretrained(PIPELINE)
    elif part == "clip":
        encoder.save(encoder.train(state, seed), CLIP)
    elif part == "flow":
        install_flow(flow.train(load_pipeline(torch.float32), state, seed), seed)
    elif part == "tuned":
        tuning = tuned.train(state, seed)
        tuned.install(tuning, tuned.judge(tuning), TUNED)
    else:
        judges.train(state, seed)
    finished.touch()


def install_flow(pipeline: StableDiffusion3Pipeline, seed: int) -> None:
    """Write the rectified flow into the package, with its card."""
    pipeline.to(torch.float16).save_pretrained(FLOW)
    write_flow_card(seed)


def write_flow_card(seed: int) -> None:
    """Judge the installed rectified flow on held-out prompts and write the figures beside its weights."""
    pipeline = load_flow(fast_cpu_dtype())
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    cards.write_card(
        FLOW,
        "The shapes rectified flow",
        cards.FLOW_DESCRIPTION,
        sum(weight.numel() for network in networks for weight in network.parameters()),
        cards.pipeline_figures(pipeline, cards.FLOW_SCALES, max_sequence_length=FLOW_T5_TOKENS)
        | cards.noisy_flow_figures(FLOW, cards.FLOW_SCALES),
        seed,
    )


def write_cards(state: Path, seed: int) -> None:
    """Evaluate every part on held-out scenes and write the metrics beside the weights."""
    pipeline = load_pipeline(torch.float32)
    parameters = {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("vae", "unet", "text_encoder")
    }
    cards.write_card(
        PIPELINE / "vae",
        "The shapes autoencoder",
        "An `AutoencoderKL` between 64 x 64 RGB images and 16 x 16 x 4 latents.",
        parameters["vae"],
        cards.autoencoder_figures(pipeline.vae),
        seed,
    )
    cards.write_card(
        PIPELINE,
        "The shapes text-to-image model",
        "A `StableDiffusionPipeline`: latent U-Net, text conditioning, classifier-free guidance, 64 x 64 images.",
        sum(parameters.values()),
        cards.pipeline_figures(load_pipeline(fast_cpu_dtype())),
        seed,
    )
    write_flow_card(seed)
    cards.write_card(
        CLIP,
        "The shapes CLIP",
        "An `open_clip` model trained on damaged and redrawn renders with captions about content and quality.",
        sum(p.numel() for p in encoder.build(len(pipeline.tokenizer)).parameters()),
        cards.clip_figures(CLIP),
        seed,
    )
    write_judges_cards(state, seed)


def write_judges_cards(state: Path, seed: int) -> None:
    """Compare the installed judges with annotators and with gold and write the figures beside their weights."""
    ranked = judges.rankings("validation", state / "ranked", seed)
    images, prompts = cards.full_images()
    gold = GoldScore()(images, prompts)
    clip = CLIPSource(f"local-dir:{CLIP}", device="cpu")
    for folder, title, description, scorer in (
        (BLIP, "The shapes BLIP", "Image and text towers for `BLIPScore`; only these were trained, not the "
         "cross-attention. Trained on pictures and captions as the shapes CLIP was.", BLIPScore.from_pretrained(BLIP)),
        (IMAGE_REWARD, "The shapes ImageReward", "For `ImageReward`: the shapes BLIP's text tower and its own image "
         "tower, trained on damaged renders with known mistakes, then on rankings.",
         ImageReward.from_pretrained(IMAGE_REWARD)),
        (AESTHETIC, "The shapes aesthetic predictor", "Fidelity ratings from the shapes CLIP's embeddings, for "
         "`AestheticScore`.", AestheticScore.from_pretrained(AESTHETIC, clip)),
    ):  # fmt: skip
        parameters_ = sum(p.numel() for p in scorer.parameters())
        material = cards.RENDERS if folder == BLIP else cards.ANNOTATORS
        figures = cards.judge_figures(scorer, ranked) | cards.order_figures(scorer, images, prompts, gold)
        cards.write_card(folder, title, description, parameters_, figures, seed, material)


if __name__ == "__main__":
    main()
