"""`python -m t2ifb.plan`: what a fine-tuning run needs, told before anything is downloaded."""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from t2ifb.config.build import Parts
from t2ifb.config.command import command
from t2ifb.config.faults import ConfigError

if TYPE_CHECKING:
    from t2ifb.diffusion.dry_run import Attention
    from t2ifb.learning.cost import Tuning
    from t2ifb.learning.plan_text import Memory
    from t2ifb.learning.refl_arithmetic import Length
    from t2ifb.learning.refl_savings import Measured

REFL_PROMPTS = 10_000
"""Entries of ImageReward's `refl_data.json`: what is assumed where the prompts are not here to be counted."""
KEPT: "tuple[tuple[str, bool, Attention | None], ...]" = (
    ("with gradient_checkpointing", True, None),
    ("without, with fused attention", False, "fused"),
    ("without, with plain attention", False, "plain"),
)
PRECISIONS = {"32-true": None, "32": None, "16-mixed": "float16", "bf16-mixed": "bfloat16"}


def plan(parts: Parts) -> None:
    """Measure the run without weights, and say what it needs, whether it fits, and what would make it fit."""
    settings = _settings(parts)
    on_cpu = parts.value("trainer").get("accelerator") == "cpu"
    with _worded():
        from t2ifb.diffusion.geometry import geometry_of
        from t2ifb.learning.plan_text import show
        from t2ifb.learning.refl_arithmetic import Arithmetic
        from t2ifb.learning.refl_savings import Measured, savings

        memory = _memory(parts.value("memory_gb"), on_cpu)
        tuning, notes = _tuning(parts, settings, on_cpu)
        length, more = _length(parts, settings)
        run = Measured.of(tuning, settings["validation_prompts"] * settings["images_per_prompt"])
        found = savings(run, memory.limit) if memory is not None else []
        notes = [*geometry_of(tuning.diffusion).notes, *notes, *more]
        show(run, Arithmetic.of(run, length), _kept(run), memory, found, notes)


def _settings(parts: Parts) -> dict[str, Any]:
    """The algorithm's arguments, with those that are not given as `FineTuning` has them.

    Raises:
        ConfigError: The algorithm is not ReFL, or the precision is none that it takes.
    """
    given = parts.value("algorithm")
    if not str(given.get("method", {}).get("_target_")).endswith(".ReFL"):
        raise ConfigError(["algorithm: only fine-tuning by ReFL is planned; give +experiment=refl"])
    precision = str(parts.value("trainer").get("precision", "32-true"))
    if precision not in PRECISIONS:
        raise ConfigError([f"trainer.precision={precision}: fine-tuning takes {', '.join(PRECISIONS)}"])
    from t2ifb.learning.fine_tuning import FineTuning

    arguments = inspect.signature(FineTuning).parameters.values()
    return {each.name: given.get(each.name, each.default) for each in arguments}


def _tuning(parts: Parts, settings: Mapping[str, Any], on_cpu: bool) -> "tuple[Tuning, list[str]]":
    """The run without weights, and notes on what was assumed."""
    import torch

    from t2ifb.diffusion.dry_run import DryRun
    from t2ifb.learning.cost import Tuning
    from t2ifb.scorers.outline import CLIPOutline, outline

    encoder, head, notes = parts.value("encoder"), parts.build("head"), []
    reward_node, diversity = settings["reward"], settings["diversity"]
    trained_on = list((reward_node.get("scorers") or {"reward": reward_node}).values())
    with DryRun():
        reward = outline(reward_node, encoder, head)
        if reward is None:
            notes.append(f"the reward, {reward_node['_target_']}, is taken to be as large as a reward model")
            reward = outline({"_target_": "RewardModel"}, encoder, head)
        judges = {}
        for name, node in (settings["judges"] or {}).items():
            if node is None or node in trained_on:
                continue
            judge = outline(node, encoder, head)
            if judge is None:
                notes.append(f"judges.{name}, {node['_target_']}, is not counted")
            else:
                judges[name] = judge
        embeds = diversity is not None and settings["images_per_prompt"] > 1
        encoder = CLIPOutline.of(diversity).load() if embeds else None
    precision = PRECISIONS[str(parts.value("trainer").get("precision", "32-true"))]
    if on_cpu and precision == "float16":
        precision = "bfloat16"  # as Lightning does
    wish, method = parts.value("attention"), parts.build("algorithm.method")
    if wish not in ("auto", "fused", "plain"):
        raise ConfigError([f"attention={wish}: expected auto, fused or plain"])
    assert reward is not None
    return Tuning(
        diffusion=parts.build("algorithm.diffusion"),
        lora=parts.build("algorithm.lora"),
        optimizer=_unfused(parts.build("algorithm.optimizer")),
        reward=reward,
        rollout=parts.build("algorithm.rollout"),
        sampling=parts.build("algorithm.sampling"),
        judges=judges,
        encoder=encoder,
        batch_size=settings["batch_size"],
        micro_batch_size=settings["micro_batch_size"],
        method=method,
        samples_per_batch=settings["samples_per_batch"],
        autocast=None if precision is None else getattr(torch, precision),
        attention=("plain" if on_cpu else "fused") if wish == "auto" else wish,
    ), notes


def _unfused(optimizer: Any) -> Any:
    """The same optimiser without the fused kernel, which `meta` does not have; its state is the same."""
    keywords = dict(optimizer.keywords)
    return partial(optimizer.func, *optimizer.args, **keywords | ({"fused": None} if "fused" in keywords else {}))


def _length(parts: Parts, settings: Mapping[str, Any]) -> "tuple[Length, list[str]]":
    """How long the run is, and a note if the prompts are not here to be counted."""
    from t2ifb.learning.refl_arithmetic import Length

    notes = []
    try:
        prompts = len(parts.build("algorithm.prompts.train").prompts())
    except (ValueError, OSError):
        prompts = REFL_PROMPTS
        notes = [f"the training prompts are not here to be counted; {prompts:,} are taken, as in ImageReward's list"]
    tests = parts.value("algorithm.prompts").get("most", 400)
    return Length(prompts, tests, settings["epochs"], settings["validate_every"]), notes


def _memory(wish: float | None, on_cpu: bool) -> "Memory | None":
    """What the run has to fit into: what is given, else the GPU that is found, or the RAM for a run on the CPU.

    Raises:
        ValueError: It is not above what the driver takes.
    """
    import torch

    from t2ifb.learning.plan_text import GB, RESERVE, Memory

    reserve = 0 if on_cpu else RESERVE
    if wish is not None:
        if wish * GB <= reserve:
            raise ValueError(
                f"memory_gb={wish} must be above {reserve / GB:g}, which a GPU's driver and libraries take"
            )
        return Memory(wish * GB, "memory_gb", reserve)
    if on_cpu:
        return Memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the RAM of this machine", reserve)
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Memory(found.total_memory, str(found.name), reserve)
    return None


def _kept(run: "Measured") -> dict[str, int]:
    """What the U-Net keeps for the backward pass, with other settings too."""
    from t2ifb.learning.cost import UNET
    from t2ifb.learning.refl_cost import kept_by_unet

    tuning, found = run.tuning, {}
    for how, checkpointing, attention in KEPT:
        source = replace(tuning.diffusion, gradient_checkpointing=checkpointing)
        other = replace(tuning, diffusion=source, attention=attention or tuning.attention)
        same = (source, other.attention) == (tuning.diffusion, tuning.attention)
        found[how] = run.update.parts[UNET].saved or 0 if same else kept_by_unet(other)
    return found


@contextmanager
def _worded() -> Iterator[None]:
    """A value that a part refuses is a wrong argument.

    Raises:
        ConfigError: There is one.
    """
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([str(error)]) from error


main = command("plan", plan)

if __name__ == "__main__":
    main()
