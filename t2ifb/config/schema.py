"""What a configuration may hold: one dataclass per command.

A `Part` is a component: `_target_` and plain arguments, checked against the target's signature in `signatures.py`.
Every other key is typed here, and a key that is not here is an error.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from t2ifb.config.paths import job_folder, shapes_weights
from t2ifb.utils.files import data_folder

Part = dict[str, Any]


@dataclass
class BaseConfig:
    """What every command has: the domain with its facts, its data and its encoder."""

    domain: str = MISSING
    usual_guidance_scale: float = 1.0
    samples_per_batch: int = 32
    scorer_sources: dict[str, str] = field(default_factory=dict)
    data_folder: str = "${data_folder:}"
    dataset: Part = field(default_factory=dict)
    build: Part | None = None
    encoder: Part = field(default_factory=dict)


@dataclass
class TrainConfig(BaseConfig):
    """`python -m t2ifb.train`."""

    seed: int = 0
    resume: str | None = None
    objective: list[str] = field(default_factory=list)
    head: Part = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    diffusion: Part | None = None
    scheduler: Part = field(default_factory=dict)
    prompts: Part | None = None
    rollout: Part | None = None
    sampling: Part | None = None
    reward: Part = field(default_factory=dict)
    judges: dict[str, Any] = field(default_factory=dict)
    optimizer: Part = field(default_factory=dict)
    algorithm: Part = field(default_factory=dict)
    trainer: Part = field(default_factory=dict)
    logger: Part = field(default_factory=dict)
    iteration: Part | None = None


@dataclass
class PlanConfig(TrainConfig):
    """`python -m t2ifb.plan`: the keys of `train`, and the memory that the run has to fit into."""

    memory_gb: float | None = None
    attention: str = "auto"


@dataclass
class PrepareConfig(BaseConfig):
    """`python -m t2ifb.prepare`."""

    splits: list[str] | None = None
    embed: bool = True
    cache_folder: str = "${data_folder}/embeddings"
    cache_storage: str = "fp32"


@dataclass
class ScoreConfig(BaseConfig):
    """`python -m t2ifb.score`."""

    prompt: str | None = None
    images: list[str] = field(default_factory=list)
    pairs: str | None = None
    split: str | None = None
    output: str | None = None
    batch_size: int = 32
    device: str = "auto"
    scorer: Part = field(default_factory=dict)


@dataclass
class GenerateConfig(BaseConfig):
    """`python -m t2ifb.generate`."""

    seed: int = 0
    prompt: list[str] = field(default_factory=list)
    file: str | None = None
    on_error: str = "error"
    split: str | None = None
    most: int = 24
    images_per_prompt: int = 1
    best_of: int = 1
    scorer: Part | None = None
    lora: str | None = None
    merge: str | None = None
    batch_size: int = 16
    device: str = "auto"
    diffusion: Part | None = None
    scheduler: Part = field(default_factory=dict)
    prompts: Part | None = None
    sampling: Part | None = None


@dataclass
class AnnotateConfig(BaseConfig):
    """`python -m t2ifb.annotate`."""

    seed: int = 0
    source: str | None = None
    run: Any = field(default_factory=list)
    prompt: list[str] = field(default_factory=list)
    file: str | None = None
    on_error: str = "error"
    split: str | None = None
    images_per_prompt: int | None = None
    batch_size: int = 16
    diffusion: Part | None = None
    scheduler: Part = field(default_factory=dict)
    prompts: Part | None = None
    sampling: Part | None = None
    output: str | None = None
    mode: str = "rank"
    images: int = 9
    order: str = "random"
    most: int | None = None
    annotators_per_prompt: int = 1
    overlap: float = 0.0
    ratings: bool = False
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    serve: bool = True
    simulate: bool = False
    annotators: int = 2
    simulated: Part | None = None
    export: str | None = None
    reward: Part | None = None
    device: str = "auto"


@dataclass
class EvaluateConfig(BaseConfig):
    """`python -m t2ifb.evaluate`."""

    seed: int = 0
    split: str = "test"
    run: Any = field(default_factory=list)
    guidance_scales: list[float] | None = field(default_factory=list)
    batch_size: int = 32
    device: str = "auto"
    diffusion: Part | None = None
    scheduler: Part = field(default_factory=dict)
    prompts: Part | None = None
    sampling: Part | None = None
    scorers: dict[str, Any] = field(default_factory=dict)
    evaluation: Part = field(default_factory=dict)


RAY = {"_target_": "hydra_plugins.t2ifb.RayLauncher", "address": None, "num_cpus": 1, "num_gpus": 0}
"""The option `hydra/launcher=ray` and its defaults; `t2ifb.config.ray_launcher` has the class."""
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "plan": PlanConfig,
    "evaluate": EvaluateConfig,
    "prepare": PrepareConfig,
    "score": ScoreConfig,
    "generate": GenerateConfig,
    "annotate": AnnotateConfig,
}


@cache
def _node(schema: type) -> Any:
    """The schema, without the values of a schema that it extends: that one's file comes first in the defaults."""
    node = OmegaConf.structured(schema)
    for base in schema.__bases__:
        for inherited in fields(base) if is_dataclass(base) else ():
            node[inherited.name] = MISSING
    return node


def register() -> None:
    """Make the schemas known to Hydra and the folders to OmegaConf's interpolations; may be called again."""
    ConfigStore.instance().store(name="base_schema", node=BaseConfig)
    ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RAY)
    for command, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{command}_schema", node=_node(schema))
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("data_folder", lambda: str(data_folder()), replace=True)
    OmegaConf.register_new_resolver("shapes_weights", lambda part: str(shapes_weights(part)), replace=True)
