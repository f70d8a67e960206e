"""`make world`: train every part of the embedded domain from nothing and install the weights in the package."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from t2ifb.shapes.training import autoencoder, cards, diffusion, encoder
from t2ifb.shapes.weights import CLIP, PIPELINE, load_pipeline

PARTS = ("autoencoder", "clip", "diffusion", "cards")


def main() -> None:
    """Train the autoencoder, then CLIP and the diffusion model side by side, then write the model cards."""
    parser = argparse.ArgumentParser(prog="python -m t2ifb.shapes.training", description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="train one part only (the others must be there)")
    parser.add_argument("--state", type=Path, default=Path("outputs/world"), help="where unfinished training is kept")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    arguments = parser.parse_args()
    if arguments.part:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
        train_part(arguments.part, arguments.state, arguments.seed)
        return
    run = [
        sys.executable,
        "-m",
        "t2ifb.shapes.training",
        "--state",
        str(arguments.state),
        "--seed",
        str(arguments.seed),
    ]
    subprocess.run([*run, "--part", "autoencoder"], check=True)
    half = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)), "T2IFB_PLAIN_PROGRESS": "1"}
    pair = [subprocess.Popen([*run, "--part", part], env=half) for part in ("clip", "diffusion")]
    if any([process.wait() for process in pair]):
        sys.exit("A part failed; its message is above. The same command goes on where it stopped.")
    subprocess.run([*run, "--part", "cards"], check=True)


def train_part(part: str, state: Path, seed: int) -> None:
    """Train one part, or leave it as it is when `state` says that it is finished."""
    finished = state / f"{part}.finished"
    if finished.exists() and part != "cards":
        print(f"{part}: finished earlier; delete {finished} to train it anew.")
        return
    state.mkdir(parents=True, exist_ok=True)
    if part == "autoencoder":
        autoencoder.train(state, seed).save_pretrained(state / "vae")
    elif part == "cards":
        write_cards(state, seed)
        return
    else:
        vae = AutoencoderKL.from_pretrained(state / "vae").eval()
        if part == "clip":
            encoder.save(encoder.train(vae, state, seed), CLIP)
        else:
            diffusion.train(vae, state, seed).to(torch.float16).save_pretrained(PIPELINE)
    finished.touch()


def write_cards(state: Path, seed: int) -> None:
    """Measure every part on held-out scenes and write the figures beside the weights."""
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
        cards.pipeline_figures(),
        seed,
    )
    clip_parameters = sum(p.numel() for p in encoder.build(len(pipeline.tokenizer)).parameters())
    cards.write_card(
        CLIP,
        "The shapes CLIP",
        "An `open_clip` model trained on damaged renders with captions about content and quality.",
        clip_parameters,
        cards.clip_figures(CLIP),
        seed,
    )


if __name__ == "__main__":
    main()
