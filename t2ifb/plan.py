"""`python -m t2ifb.plan`: what a fine-tuning run needs, told before anything is downloaded."""

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from t2ifb.config.command import command
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components, lazy
from t2ifb.config.reward_source import judges_of
from t2ifb.config.signatures import RESERVED

if TYPE_CHECKING:
    from torch import nn

    from t2ifb.finetuning.run import FineTuner
    from t2ifb.profiling.cost import RunSpec
    from t2ifb.profiling.meta_mode import Attention
    from t2ifb.profiling.report import Memory
    from t2ifb.scorers.clip import CLIPSource

REFL_PROMPTS = 10_000
"""Entries of ImageReward's `refl_data.json`: what is assumed where the prompts are not here to be counted."""
KEPT: "tuple[tuple[str, bool, Attention | None], ...]" = (
    ("with gradient_checkpointing", True, None),
    ("without, with fused attention", False, "fused"),
    ("without, with plain attention", False, "plain"),
)
PRECISIONS = {"32-true": None, "32": None, "16-mixed": "fp16", "bf16-mixed": "bf16"}


def plan(parts: Components) -> None:
    """Measure the run without weights, and say what it needs, whether it fits, and what would make it fit.

    Raises:
        ConfigError: A part refuses a value, or nothing is planned for the algorithm.
    """
    if "algorithm" not in parts.value("algorithm"):
        raise ConfigError(["algorithm: only fine-tuning is planned; give its experiment, such as +experiment=refl"])
    try:
        _measure(parts)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def _measure(parts: Components) -> None:
    from t2ifb.diffusion.model import DENOISER
    from t2ifb.profiling.flops import FlopEstimate, Length
    from t2ifb.profiling.report import show
    from t2ifb.profiling.savings import MemoryEstimate, savings
    from t2ifb.profiling.update_cost import kept_by_denoiser
    from t2ifb.utils.devices import gpu_error

    on_cpu = parts.value("trainer").get("accelerator") == "cpu"
    memory = _memory(parts.value("memory_gb"), on_cpu)
    training, notes = _training(parts)
    tuning = _tuning(parts, training, on_cpu)
    prompts, most = REFL_PROMPTS, training.prompts.most
    try:
        prompts = len(training.prompts.train.prompts())  # held-out ones are left out later: that takes the rankings
    except (ValueError, OSError):
        what = "the training prompts are not here to be counted"
        notes.append(f"{what}; {prompts:,} are taken, as in ImageReward's list")
    if not on_cpu and (error := gpu_error()):
        notes.append(error)
    run = MemoryEstimate.of(tuning, min(training.validation_prompts, most) * training.images_per_prompt)
    kept = {}
    for how, checkpointing, attention in KEPT:
        source = replace(tuning.diffusion, gradient_checkpointing=checkpointing)
        other = replace(tuning, diffusion=source, attention=attention or tuning.attention)
        kept[how] = (run.update.parts[DENOISER].saved or 0) if other == tuning else kept_by_denoiser(other)
    counted = FlopEstimate.of(run, Length(prompts, most, training.epochs, training.validate_every))
    found = savings(run, memory.limit) if memory is not None else []
    show(run, counted, kept, memory, found, [*tuning.diffusion.notes(), *notes])


def _training(parts: Components) -> "tuple[FineTuner, list[str]]":
    """The run as it is configured, its scorers without weights, and notes on those that are not counted."""
    import torch

    from t2ifb.finetuning.run import FineTuner
    from t2ifb.profiling.meta_mode import MetaMode
    from t2ifb.scorers.meta import MetaCLIP, NoMetaModel, on_meta
    from t2ifb.scorers.reward_model import RewardModel

    encoder, head = parts.build("encoder"), parts.build("head")

    def untrained(source: "CLIPSource | None" = None) -> RewardModel:
        built = MetaCLIP.of(source or encoder).load()
        with torch.device("meta"):
            return RewardModel(built, head(built.embedding_dim))

    given = {
        name: value
        for name, value in parts.value("algorithm").items()
        if name not in (*RESERVED, "truth", "judge_weights")
    }
    trained_on, named = given.pop("reward"), given.pop("judges", None) or {}
    judges: dict[str, nn.Module] = {}
    notes = []
    with MetaMode():
        try:
            reward = on_meta(lazy(trained_on), untrained)
        except NoMetaModel as error:
            notes.append(f"the reward is taken to be as large as a reward model: {error}")
            reward = untrained()
        for name, node in judges_of(trained_on, named).items():
            try:
                judges[name] = on_meta(lazy(node), untrained)
            except NoMetaModel as error:
                notes.append(f"judges.{name} is not counted: {error}")
    built = {name: parts.build(f"algorithm.{name}") if isinstance(v, dict) else v for name, v in given.items()}
    return FineTuner(**built, reward=reward, judges=judges, output_dir=parts.run_folder), notes


def _tuning(parts: Components, training: "FineTuner", on_cpu: bool) -> "RunSpec":
    """What is measured of a run.

    Raises:
        ConfigError: Precision or attention are none that there are.
    """
    from t2ifb.profiling.cost import RunSpec
    from t2ifb.profiling.meta_mode import MetaMode
    from t2ifb.scorers.meta import MetaCLIP
    from t2ifb.utils.devices import dtype_of

    mixed, wish = str(parts.value("trainer").get("precision", "32-true")), parts.value("attention")
    if mixed not in PRECISIONS:
        raise ConfigError([f"trainer.precision={mixed}: fine-tuning takes {', '.join(PRECISIONS)}"])
    if wish not in ("auto", "fused", "plain"):
        raise ConfigError([f"attention={wish}: expected auto, fused or plain"])
    precision = "bf16" if on_cpu and mixed == "16-mixed" else PRECISIONS[mixed]  # as Lightning does
    with MetaMode():
        encoder = None
        if training.diversity is not None and training.images_per_prompt > 1:
            encoder = MetaCLIP.of(training.diversity).load()
    algorithm: Any = training.algorithm
    if not hasattr(algorithm, "work"):
        name = type(algorithm).__name__
        raise ConfigError([f"algorithm: {name} has no method work, which t2ifb.finetuning.algorithm.Planned describes"])
    return RunSpec(
        diffusion=training.model,
        lora=training.lora,
        optimizer=_unfused(training.optimizer),
        reward=training.reward.to("meta"),
        rollout=training.rollout,
        sampling=training.sampling,
        judges=training.judges,
        encoder=encoder,
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        algorithm=algorithm,
        samples_per_batch=training.samples_per_batch,
        autocast=None if precision is None else dtype_of(precision),
        attention=("plain" if on_cpu else "fused") if wish == "auto" else wish,
        on_gpu=not on_cpu,
    )


def _unfused(optimizer: Any) -> Any:
    """The same optimiser without the fused kernel, which `meta` does not have; its state is the same."""
    keywords = dict(optimizer.keywords)
    return partial(optimizer.func, *optimizer.args, **keywords | ({"fused": None} if "fused" in keywords else {}))


def _memory(wish: float | None, on_cpu: bool) -> "Memory | None":
    """What the run has to fit into: what is given, else the GPU that is found, or the RAM for a run on the CPU.

    Raises:
        ValueError: It is not above what libraries take.
    """
    import torch

    from t2ifb.profiling.gpu_memory import GB, LIBRARIES
    from t2ifb.profiling.report import Memory

    taken = 0 if on_cpu else LIBRARIES
    if wish is not None:
        if wish * GB <= taken:
            why = ", which CUDA and its libraries take" if taken else ""
            raise ValueError(f"memory_gb={wish} must be above {taken / GB:g}{why}")
        return Memory(wish * GB, "memory_gb", not on_cpu)
    if on_cpu:
        return Memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the RAM of this machine", False)
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Memory(found.total_memory, str(found.name), True)
    return None


main = command("plan", plan)

if __name__ == "__main__":
    main()
