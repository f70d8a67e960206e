"""What every command shares: compose, check everything, run under Hydra, and report errors in one line."""

import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2ifb.config import ray_launcher, schema
from t2ifb.config.compose import Composed, compose_all, groups_in, searched_folders
from t2ifb.config.errors import ConfigError, missing_file
from t2ifb.config.instantiate import Components, check
from t2ifb.config.paths import conf_folder
from t2ifb.config.resume import check_unused, continue_run, wished_run
from t2ifb.config.sweeps import in_sweep, one_job
from t2ifb.config.where import where_text
from t2ifb.data.errors import BadRecords


def help_text(config: DictConfig) -> str:
    """The command's help: the template of `conf/base.yaml`, filled in.

    Args:
        config: Composed, with its `hydra` node.
    """
    groups = groups_in(searched_folders(config))
    listed = "\n".join(f"{name}: {', '.join(options)}" for name, options in groups.items())
    shown = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return Template(config.hydra.help.template).substitute(APP_CONFIG_GROUPS=listed, CONFIG=OmegaConf.to_yaml(shown))


EXPECTED = (HydraException, OmegaConfBaseException, ValueError, OSError)
"""What a user, a machine or a file can cause."""
LOST = ("TerminatedWorkerError", "UncompletedJobError")
"""What joblib and submitit, which need not be installed, call a job whose process was killed."""
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


AfterSweep = Callable[[Path, float], int]
"""Takes a sweep's folder and when it was started, in seconds since the epoch; gives how many of its jobs are left."""


def command(name: str, task: Callable[[Components], Any], after_sweep: AfterSweep | None = None) -> Callable[[], None]:
    """Make `main` of `python -m t2ifb.<name>`.

    Exit status: 0 when done; 2 when the input is wrong (an argument, a file that is not there), found before any
    weight is loaded; 1 when the run failed for a reason outside the software; 130 on Ctrl-C. None of them shows a
    traceback unless `T2IFB_TRACEBACK=1`; an error of the software itself does.

    Args:
        name: The primary configuration, `conf/<name>.yaml`.
        task: What the command does with the parts of one run. Its module imports nothing heavy before it is called.
        after_sweep: Shows what a sweep found, also of one that was stopped.
    """

    def main() -> None:
        sys.exit(run(name, task, after_sweep))

    return main


def run(name: str, task: Callable[[Components], Any], after_sweep: AfterSweep | None = None) -> int:
    """Run the command on `sys.argv` and give its exit status."""

    def advised(parts: Components) -> Any:
        try:
            return task(parts)
        except BadRecords as error:
            raise error.advising(parts.skipping(error.place)) from error
        except ValueError as error:
            if type(error) is not ValueError or (text := parts.advised(error)) == str(error):
                raise
            raise ValueError(text) from error

    def job(config: DictConfig) -> Any:
        schema.register()  # a launcher's worker process has not
        parts = Components(config)
        if in_sweep():
            with one_job(parts.run_folder):
                return advised(parts)
        try:
            return advised(parts)
        except EXPECTED as error:
            sys.exit(_report(name, error))

    speak_unicode()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then hands exceptions on, and `_report` words them
    try:
        schema.register()
        arguments = _checked_arguments(name, sys.argv[1:])
        if arguments is None:
            return 0
        sys.argv[1:], sweeps = arguments
        ray_launcher.offer()
        started = time.time()
        try:
            hydra.main(config_path=str(conf_folder()), config_name=name, version_base="1.3")(job)()
        finally:
            left = sum(after_sweep(sweep, started) for sweep in sweeps if sweep.is_dir()) if after_sweep else 0
        sys.stdout.flush()
        if left:
            return FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except EXPECTED as error:
        return _report(name, error)
    except Exception as error:
        if type(error).__name__ not in LOST:
            raise
        lost = RuntimeError(f"a job was lost; run the same command again to continue with the others: {error}")
        lost.__cause__ = error
        return _report(name, lost)
    return 0


def speak_unicode() -> None:
    """Read arguments and names of files as UTF-8, and print what the terminal cannot show as escapes.

    Where Python takes the locale to be ASCII, arguments have arrived garbled: the process starts again in UTF-8 mode.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _checked_arguments(name: str, arguments: list[str]) -> tuple[list[str], list[Path]] | None:
    """Refuse wrong arguments, answer `--help` and `--where`; None if there is no more to do.

    Returns:
        Those for Hydra, and the folders that the jobs of a sweep go into, such as one for each experiment.
    """
    arguments, key = _without_where(arguments)
    options = get_args_parser().parse_intermixed_args(arguments)
    overrides: list[str] = list(options.overrides)
    flags = [argument for argument in arguments if argument not in overrides]
    if options.hydra_help or options.shell_completion or options.experimental_rerun or options.config_name:
        return arguments, []
    if options.config_dir and not Path(options.config_dir).is_dir():
        raise ConfigError([f"--config-dir: {missing_file(Path(options.config_dir))}"])
    only_shows = bool(options.cfg or options.help or options.info or key)
    wish = None if only_shows else wished_run(overrides)
    if wish is not None:
        if options.multirun:
            raise ConfigError(["resume: one run at a time goes on; leave -m out"])
        overrides = continue_run(name, wish, overrides, options.config_dir)
    composed = compose_all(name, overrides, multirun=options.multirun, config_dir=options.config_dir)
    errors = [error for each in composed for error in (each.errors if only_shows else _errors(each))]
    if errors:
        raise ConfigError(errors)
    if options.help:
        print(help_text(composed[0].config), flush=True)
        return None
    if key:
        print(where_text(key, [each.config for each in composed], overrides), flush=True)
        return None
    sweeping = not only_shows and (options.multirun or str(composed[0].config.hydra.mode).endswith("MULTIRUN"))
    sweeps = dict.fromkeys(Path(str(each.config.hydra.sweep.dir)).absolute() for each in composed if sweeping)
    if name == "train" and not (only_shows or sweeping or wish):
        check_unused(Path(str(composed[0].config.hydra.run.dir)).absolute())
    return [*overrides, *flags], list(sweeps)  # a flag such as --info would take the argument after it


def _without_where(arguments: list[str]) -> tuple[list[str], str]:
    """The arguments without `--where KEY`, and the key; empty if it is not asked for.

    Raises:
        ConfigError: The key is missing.
    """
    rest, key = list(arguments), ""
    for number, argument in enumerate(arguments):
        if argument == "--where" or argument.startswith("--where="):
            key = argument.partition("=")[2] or next(iter(arguments[number + 1 :]), "")
            if not key or key.startswith("-") or "=" in key:
                raise ConfigError(["--where: name the key, such as --where optimizer.lr"])
            del rest[number : number + (1 if "=" in argument else 2)]
            break
    return rest, key


def _errors(composed: Composed) -> tuple[str, ...]:
    try:
        check(composed)
    except ConfigError as error:
        return error.errors
    return ()


def _report(name: str, error: Exception) -> int:
    """Print one short message to the standard error and give the exit status."""
    if os.environ.get("T2IFB_TRACEBACK") == "1":
        traceback.print_exception(error)
    wrong = isinstance(error, (ConfigError, HydraException, OmegaConfBaseException, FileNotFoundError))
    if isinstance(error, ConfigError):
        text = "\n".join(("  " if len(error.errors) > 1 else "") + line for line in error.errors)
        text = f"{len(error.errors)} errors\n{text}" if len(error.errors) > 1 else text
    elif isinstance(error, FileNotFoundError) and isinstance(error.filename, (str, Path)):
        text = missing_file(Path(error.filename))
    else:
        text = str(error).strip() or type(error).__name__
    print(f"t2ifb.{name}: {text}", file=sys.stderr)
    return BAD_INPUT if wrong else FAILED
