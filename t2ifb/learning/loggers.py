"""Where figures go besides `metrics.csv`: Weights & Biases, or nowhere."""

import netrc
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from t2ifb.data.files import atomic_write
from t2ifb.learning.run_folder import RunFolder

STEP = "trainer/global_step"
"""What Lightning calls the step in Weights & Biases; every figure is plotted against it."""
BEST = {"val/accuracy": "max", "val/judges": "max", "val/loss": "min"}
"""Of which figures the run's summary keeps the best value instead of the last."""


def wandb_logger(
    run: RunFolder,
    config: dict[str, Any],
    project: str = "t2ifb",
    mode: Literal["auto", "online", "offline"] = "auto",
    entity: str | None = None,
    tags: Sequence[str] = (),
) -> Logger:
    """A Weights & Biases run, named and grouped after the run folder.

    Args:
        run: Its files go to `wandb/` in this folder; a resumed run keeps its id.
        config: The resolved configuration.
        project: Of Weights & Biases.
        mode: `auto` is what `WANDB_MODE` says, otherwise online where the user is logged in, otherwise offline.
        entity: User or team.
        tags: Besides the domain and the experiment.
    """
    import wandb

    wandb.finish()  # a run of an earlier job of this process must not be written on
    online = mode == "online" or (mode == "auto" and logged_in())
    disabled = mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"
    id_file = run.path / "wandb_id.txt"
    if not id_file.exists():
        with atomic_write(id_file) as file:
            file.write(uuid.uuid4().hex[:8].encode())
    run_id = id_file.read_text(encoding="utf-8").strip()
    domain = str(config.get("domain", ""))
    parts = run.path.absolute().parent.parts  # outputs/<domain>/<experiment>, and in a sweep its name
    below = parts[len(parts) - parts[::-1].index("outputs") + 1 :] if "outputs" in parts else parts[-1:]
    experiment = "/".join(below)
    with _unchanged("WANDB_MODE"):
        started = wandb.init(
            project=project,
            entity=entity,
            name=f"{experiment}-seed{config.get('seed', 0)}-{run.path.name}",
            group=f"{domain}/{experiment}",
            tags=[*{domain, *below, *tags} - {""}],
            config=config,
            dir=str(run.path),
            id=run_id,
            resume="allow" if online else None,
            mode="online" if online else "disabled" if disabled else "offline",
            settings=wandb.Settings(silent=True),
        )
    started.define_metric(STEP)  # Lightning does this and the next only where it starts the run itself
    started.define_metric("*", step_metric=STEP, step_sync=True)
    for name, best in BEST.items():
        started.define_metric(name, step_metric=STEP, step_sync=True, summary=best)
    return WandbLogger(experiment=started, save_dir=run.path)


def csv_logger(run: RunFolder, config: dict[str, Any]) -> Logger:
    """Lightning's own CSV files in `csv/`, for tools that read them; `metrics.csv` is written besides."""
    return CSVLogger(run.path, name="csv", version="")


def no_logger(run: RunFolder, config: dict[str, Any]) -> Literal[False]:
    """Nothing but `metrics.csv` and `summary.json`."""
    return False


def logged_in() -> bool:
    """Whether this machine knows a key for Weights & Biases and its environment does not say offline."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def show(recorders: Iterable[Logger], name: str, picture: Path, step: int) -> None:
    """Put a picture into a Weights & Biases run."""
    for logger in recorders:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(picture)], step=step)


def finish(
    logger: Logger | Literal[False], examples: list[dict[str, Any]], export: Path, kept: Mapping[str, float]
) -> None:
    """Add what runs are compared by, and end the run, so that the next begins afresh.

    Args:
        logger: Nothing happens unless it is that of Weights & Biases.
        examples: Rows of a table.
        export: The exported model, sent where there is a connection.
        kept: Validation figures of the kept checkpoint, for the run's summary: all of one step.
    """
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    if examples:
        columns = list(examples[0])
        rows = [[wandb.Image(row[c]) if c == "image" else row[c] for c in columns] for row in examples]
        logger.experiment.log({"examples": wandb.Table(columns=columns, data=rows)})
    logger.experiment.summary.update({f"kept/{name}": figure for name, figure in kept.items()})
    if not logger.experiment.offline:
        artifact = wandb.Artifact(f"{logger.experiment.id}-export", type="model")
        artifact.add_dir(str(export))
        logger.experiment.log_artifact(artifact)
    wandb.finish()


@contextmanager
def _unchanged(variable: str) -> Iterator[None]:
    before = os.environ.get(variable)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
