"""`python -m t2ifb.plan`: what a fine-tuning run needs, told before anything is downloaded."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
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
    from t2ifb.profiling.flops import Length
    from t2ifb.profiling.meta_mode import Attention
    from t2ifb.profiling.report import Memory
    from t2ifb.scorers.clip import CLIPSource

REFL_PROMPTS = 10_000
"""Entries of ImageReward's `refl_data.json`: what is assumed where prompts or pairs are not here to be counted."""
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
    from t2ifb.profiling.flops import FlopEstimate
    from t2ifb.profiling.report import show
    from t2ifb.profiling.savings import MemoryEstimate, savings
    from t2ifb.profiling.update_cost import kept_by_denoiser
    from t2ifb.utils.devices import gpu_error

    on_cpu = parts.value("trainer").get("accelerator") == "cpu"
    memory = _memory(parts.value("memory_gb"), on_cpu)
    training, notes = _training(parts)
    processes, note = processes_of(parts.value("trainer"))
    if training.batch_size < processes:
        few = f"algorithm.batch_size={training.batch_size}"
        raise ConfigError([f"{few}: {processes} processes need at least as many prompts per update"])
    tuning = _tuning(parts, training, processes, on_cpu)
    length, assumed = length_of(training, processes)
    notes += [*note, *assumed]
    if (rounds := parts.value("iteration")) is not None:
        what = "drawing images for rankings and training the reward are not counted"
        notes.append(f"the tuning of one of {rounds['rounds']} rounds is planned; {what}")
    if not on_cpu and (error := gpu_error()):
        notes.append(error)
    images = min(training.validation_prompts, training.prompts.most) * training.images_per_prompt
    at_end = max(length.tests, length.compared * max(1, training.best_of - 1))
    run = MemoryEstimate.of(tuning, -(-images // processes), at_end)
    kept = {}
    for how, checkpointing, attention in KEPT:
        source = replace(tuning.diffusion, gradient_checkpointing=checkpointing)
        other = replace(tuning, diffusion=source, attention=attention or tuning.attention)
        kept[how] = (run.update.parts[DENOISER].saved or 0) if other == tuning else kept_by_denoiser(other)
    counted = FlopEstimate.of(run, length)
    found = savings(run, memory.limit) if memory is not None else []
    show(run, counted, kept, memory, found, [*tuning.diffusion.notes(), *notes])


def processes_of(trainer: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Number of processes of a trainer with these arguments, and notes on what a plan for them is."""
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes", 1))
    if isinstance(devices, list):
        count = len(devices)
    elif "," in str(devices):  # numbers of devices
        count = len([number for number in devices.split(",") if number.strip()])
    elif str(devices).isdigit():
        count = int(devices)
    else:
        note = f"trainer.devices={devices}: planned for one device on each node; give their number"
        return nodes, [note, *([_share(nodes)] if nodes > 1 else [])]
    return count * nodes, [_share(count * nodes)] if count * nodes > 1 else []


def _share(processes: int) -> str:
    return f"memory, arithmetic and times are those of one of {processes} processes, which share prompts and images"


def length_of(training: "FineTuner", processes: int) -> "tuple[Length, list[str]]":
    """How long a run is, and notes on what is assumed. Held-out prompts are left out later: that takes the rankings."""
    from t2ifb.profiling.flops import Length

    on_pairs, notes = training.algorithm.data == "preference_pairs", []
    try:
        count = _pairs(training.rankings) if on_pairs else len(training.prompts.train.prompts())
    except (ValueError, OSError):
        count = 0
    if not count and on_pairs:
        unknown = "the preference pairs are not here to be counted, so that the run's length is unknown"
        notes.append(f"{unknown}; {REFL_PROMPTS:,} are taken as an example")
    elif not count:
        unknown = "the training prompts are not here to be counted"
        notes.append(f"{unknown}; {REFL_PROMPTS:,} are taken, as in ImageReward's list")
    most = training.prompts.most
    compared = min(training.guidance_prompts, most) if training.guidance_scales else 0
    tests, compared = (-(-number // processes) for number in (most, compared))
    numbers = training.epochs, training.validate_every, training.batch_size
    return Length(count or REFL_PROMPTS, tests, *numbers, compared), notes


def _pairs(dataset: Any) -> int:
    """Number of preference pairs in an epoch, see `PairDataModule`; 0 if the data are not here."""
    if not dataset.available("train"):
        return 0
    counts = [len(ranking.judgements()) for ranking in dataset.rankings("train")]
    if not hasattr(dataset, "multiplicities"):
        return sum(counts)
    blocks, total = iter(counts), 0
    for size, times in dataset.multiplicities("train"):
        total += round(times * sum(islice(blocks, size)))
    return total


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


def _tuning(parts: Components, training: "FineTuner", processes: int, on_cpu: bool) -> "RunSpec":
    """What is measured of a run, in one of its processes.

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
        batch_size=-(-training.batch_size // processes),
        micro_batch_size=training.micro_batch_size,
        algorithm=algorithm,
        samples_per_batch=training.samples_per_batch,
        guidance_scales=training.guidance_scales,
        best_of=training.best_of,
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
