"""The study of alpha, beta and learning rate: a valid sweep, and the reading of its jobs."""

import csv
import itertools
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.alpha_beta_lr import pictures, study
from experiments.held_out import GOLD, JUDGES, KL
from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import check
from tests.experiments.conftest import Drawn

NAMES = ("reward", *JUDGES, *GOLD, *KL)


def write_job(folder: Path, setting: tuple[float, float, float], gold: float) -> None:
    """A finished job whose kept and last states have gained so much gold on two prompts."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "samples").mkdir()
    values = dict(zip(study.SETTINGS, setting, strict=True)) | study.COMMON
    (folder / ".hydra/overrides.yaml").write_text("".join(f"- {key}={value}\n" for key, value in values.items()))
    summary = {
        "git_commit": "none",
        "best_step": 30,
        "chosen_by": "judges",
        "validation": {"judges": 0.1, "gold": 0.6 + gold},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    for state, gained in (("base", 0.0), ("kept", gold), ("last", gold)):
        with (folder / f"samples/test_{state}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt", *NAMES])
            writer.writerows([prompt, *(level + gained for _ in NAMES)] for prompt, level in (("a", 0.5), ("b", 0.7)))


def test_the_sweep_has_valid_jobs_six_by_three_and_two_of_one_ratio() -> None:
    schema.register()
    jobs = compose_all("train", study.command(0, 2)[3:])
    for job in jobs:
        check(job)
    values = [{float(OmegaConf.select(job.config, key)) for job in jobs} for key in study.SETTINGS]
    assert [len(of_key) for of_key in values] == [2, 3, 3]  # each is composed once with each value
    assert all(pair in itertools.product(*values[:2]) for pair in study.SAME)
    assert len({alpha / beta for alpha, beta in study.SAME}) == 1


def test_settings_are_compared_that_all_seeds_have_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Drawn
) -> None:
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match="no setting has finished runs"):
        study.compare([0, 1])
    for seed, (alpha, beta, lr) in itertools.product(
        (0, 1), itertools.product((1.0, 100.0), (0.01, 1.0), (1e-3, 3e-3))
    ):
        if (seed, alpha, beta, lr) != (1, 100.0, 0.01, 3e-3):
            write_job(tmp_path / f"seed{seed}/{alpha}_{beta}_{lr}", (alpha, beta, lr), 0.1 * seed + 0.001 * alpha)
    monkeypatch.setitem(study.COMMON, "algorithm.epochs", "0.2")
    for seed in (0, 1):
        write_job(tmp_path / f"seed{seed}/of_old_settings", (1.0, 0.01, 1e-3), 9.0)
    monkeypatch.setitem(study.COMMON, "algorithm.epochs", "0.1")
    result = study.compare([0, 1])
    settings = result["settings"]
    assert len(settings) == 7
    first = settings[0]
    assert (first["alpha"], first["beta"], first["lr"], first["ratio"]) == (1, 0.01, 1e-3, 100)
    assert first["kept"]["gain"]["gold"]["over_seeds"]["mean"] == pytest.approx(0.051)
    assert first["kept"]["base"]["gold"] == pytest.approx(0.6)
    assert [pair["lr"] for pair in result["same_ratio"]] == [1e-3, 3e-3]
    apart = result["same_ratio"][0]["last"]["gold"]
    assert [seed["mean"] for seed in apart["seeds"]] == pytest.approx([-0.099, -0.099])
    assert result["best_on_validation"] == {"alpha": 100, "beta": 0.01, "lr": 1e-3}
    worst = next(each for each in result["best_against"] if each["alpha"] == 1 and each["lr"] == 3e-3)
    assert worst["kept"]["gold"]["over_seeds"]["mean"] == pytest.approx(0.099)
    (against,) = (each for each in result["against_report"] if (each["alpha"], each["beta"]) == (1, 0.01))
    assert (against["lr"], len(result["against_report"])) == (1e-3, 3)  # the report's at 3e-3 is not finished
    assert against["last"]["gold"]["over_seeds"]["mean"] == pytest.approx(-0.099)
    pictures.draw(result, tmp_path / "result.png")
    assert drawn.shows(
        *(each[state]["gain"]["gold"]["over_seeds"]["mean"] for each in settings for state in ("kept", "last"))
    )
    rows = [tick.get_text() for tick in drawn.figure.axes[0].get_yticklabels()]
    assert rows == ["1 / 1 = 1", "1 / 0.01 = 100", "100 / 1 = 100", "100 / 0.01 = 10000"]
