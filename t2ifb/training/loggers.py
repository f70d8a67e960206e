"""Loggers in addition to `metrics.csv`: Weights & Biases, TensorBoard or none. A failing logger does not stop a run."""

import json
import logging
import netrc
import os
import sys
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.files import write_text

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
"""Lightning's name of the step in Weights & Biases, the x axis of all metrics."""
BEST = {"val/accuracy": "max", "val/judges": "max", "val/loss": "min"}
"""Metrics for which the run's summary keeps the best value instead of the last."""


class SafeLogger(Logger):
    """Forwards calls to another logger until it fails. The first failure gives one warning.

    Attributes:
        inner: The other logger; None after it failed.
    """

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner: Logger | None = inner

    def attempt(self, action: Callable[[Any], Any]) -> Any:
        """Call `action` on the inner logger. Returns None if it fails or has failed before."""
        if self.inner is None:
            return None
        try:
            return action(self.inner)
        except Exception as error:  # disk, network, a killed service, or an error in a user's logger
            failed, self.inner = self.inner, None
            _warn(error)
            if isinstance(failed, WandbLogger):
                _end_wandb()
            return None

    @property
    def name(self) -> str | None:
        """Name of the inner logger."""
        name: str | None = self.attempt(lambda logger: logger.name)
        return name

    @property
    def version(self) -> int | str | None:
        """Version of the inner logger."""
        version: int | str | None = self.attempt(lambda logger: logger.version)
        return version

    @property
    def save_dir(self) -> str | None:
        """Folder of the inner logger."""
        folder: str | None = self.attempt(lambda logger: logger.save_dir)
        return folder

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Forward metrics."""
        self.attempt(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Forward settings."""
        self.attempt(lambda logger: logger.log_hyperparams(params, *args, **kwargs))

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Forward the module's graph."""
        self.attempt(lambda logger: logger.log_graph(*args, **kwargs))

    def save(self) -> None:
        """Write pending data."""
        self.attempt(lambda logger: logger.save())

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Report a new checkpoint."""
        self.attempt(lambda logger: logger.after_save_checkpoint(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """Report the status at the end of training."""
        self.attempt(lambda logger: logger.finalize(status))


def start(make: Callable[..., Logger | Literal[False]], run: RunFolder, config: Any) -> Logger | Literal[False]:
    """Build a run's logger. On failure, log a warning and continue without it."""
    try:
        logger = make(run=run, config=config)
    except Exception as error:
        _warn(error)
        _end_wandb()
        return False
    return SafeLogger(logger) if logger else False


def wandb_logger(
    run: RunFolder,
    config: dict[str, Any],
    project: str = "t2ifb",
    mode: Literal["auto", "online", "offline"] = "auto",
    entity: str | None = None,
    tags: Sequence[str] = (),
) -> Logger | Literal[False]:
    """A Weights & Biases run, named and grouped after the run folder, see `names_of`.

    Args:
        run: Run folder. All files, including staged and cached ones, go to `wandb/` in it; a resumed run keeps its id.
        config: The resolved configuration.
        project: Project in Weights & Biases.
        mode: `auto` uses `WANDB_MODE` if set, else online if the user is logged in, else offline.
        entity: User or team.
        tags: Tags in addition to domain and experiment.

    Returns:
        False if `WANDB_MODE=disabled` applies. Nothing is written then.
    """
    if mode == "auto" and os.environ.get("WANDB_MODE") == "disabled":
        return False
    import wandb

    wandb.finish()  # do not continue a run of an earlier job in this process
    online = mode == "online" or (mode == "auto" and logged_in())
    id_file = run.path / "wandb_id.txt"
    if not id_file.exists():
        write_text(id_file, uuid.uuid4().hex[:8])
    run_id = id_file.read_text(encoding="utf-8").strip()
    name, group, own_tags = names_of(run.path, config)
    with _unchanged("WANDB_MODE"), _staged_in(run.path):
        started = wandb.init(
            project=project,
            entity=entity,
            name=name,
            group=group,
            tags=[*dict.fromkeys((*own_tags, *tags))],
            config=config,
            dir=str(run.path),
            id=run_id,
            resume="allow" if online else None,
            mode="online" if online else "offline",
            settings=wandb.Settings(silent=True),
        )
    started.define_metric(STEP)  # Lightning does this and the next only if it starts the run itself
    started.define_metric("*", step_metric=STEP, step_sync=True)
    for name, best in BEST.items():
        started.define_metric(name, step_metric=STEP, step_sync=True, summary=best)
    return WandbLogger(experiment=started, save_dir=run.path)


def names_of(folder: Path, config: Mapping[str, Any]) -> tuple[str, str | None, list[str]]:
    """Name, group and tags of a run in Weights & Biases.

    Args:
        folder: Run folder, such as `outputs/<domain>/<experiment>/<sweep>/<time>`. Below another folder than `outputs`,
            only the name of its parent counts.
        config: The configuration, with `domain` if it is from the command line.

    Returns:
        `<experiment>/<sweep>-seed<seed>-<time>`; `<domain>/<experiment>/<sweep>`, or None if no part is known; and its
        parts.
    """
    domain, parts = str(config.get("domain") or ""), folder.absolute().parent.parts
    below = parts[len(parts) - parts[::-1].index("outputs") :] if "outputs" in parts else parts[-1:]
    experiment = [*below[1:]] if below[:1] == (domain,) else [*below]
    tags = [part for part in (domain, *experiment) if part]
    name = "-".join([*filter(None, ["/".join(experiment)]), f"seed{config.get('seed', 0)}", folder.name])
    return name, "/".join(tags) or None, tags


def tensorboard_logger(run: RunFolder, config: dict[str, Any]) -> Logger:
    """Event files in `tensorboard/` of the run folder, with metrics, configuration and pictures.

    Args:
        run: Run folder. A resumed run adds a file.
        config: The resolved configuration.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ModuleNotFoundError("TensorBoard is not installed; install it with pip install tensorboard")
    logger = TensorBoardLogger(run.path, name="tensorboard", version="", default_hp_metric=False)
    logger.experiment.add_text("config", f"```json\n{json.dumps(config, indent=2, default=str)}\n```")
    return logger


def no_logger(run: RunFolder, config: dict[str, Any]) -> Literal[False]:
    """No logger: only `metrics.csv` and `summary.json` are written."""
    return False


def logged_in() -> bool:
    """Whether this machine has a key for Weights & Biases and the environment does not set offline mode."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def show(recorders: Iterable[Logger], name: str, picture: Path, step: int) -> None:
    """Log a picture to Weights & Biases or TensorBoard."""

    def log_image(logger: Logger) -> None:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(picture)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            with Image.open(picture) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")

    for recorder in recorders:
        if isinstance(recorder, SafeLogger):
            recorder.attempt(log_image)


def finish(
    recorder: Logger | Literal[False], examples: list[dict[str, Any]], run: RunFolder, kept: Mapping[str, float]
) -> None:
    """Add the data for comparisons and end the run, so that the next one starts separately.

    Args:
        recorder: The logger. No effect unless it is Weights & Biases.
        examples: Rows of a table.
        run: Run folder. Its export is uploaded in online mode.
        kept: Validation metrics of the kept checkpoint, for the run's summary.
    """

    def finish_wandb(logger: Logger) -> None:
        if isinstance(logger, WandbLogger):
            with _staged_in(run.path):
                _finish_wandb(logger, examples, run.export, kept)

    if isinstance(recorder, SafeLogger):
        recorder.attempt(finish_wandb)


def _finish_wandb(logger: WandbLogger, examples: list[dict[str, Any]], export: Path, kept: Mapping[str, float]) -> None:
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


def _warn(error: Exception) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    log.warning("The logger failed; the run continues without it, and metrics.csv has all metrics: %s", text)


def _end_wandb() -> None:
    """End an open run, so that it does not receive the next run's metrics, and stop a possibly broken service."""
    if wandb := sys.modules.get("wandb"):
        for end in (wandb.finish, wandb.teardown):
            with suppress(Exception):
                end(exit_code=1)


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Keep files of Weights & Biases out of the home folder, which may be full or read-only."""
    places = {"WANDB_CACHE_DIR": folder / "wandb" / "cache", "WANDB_DATA_DIR": folder / "wandb" / "data"}
    new = {name: str(place.absolute()) for name, place in places.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _unchanged(variable: str) -> Iterator[None]:
    before = os.environ.get(variable)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
