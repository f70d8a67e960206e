"""What runs that Lightning drives have in common."""

from types import SimpleNamespace

from t2ifb.learning.engine import ProgressBar


def test_the_bar_of_a_resumed_run_is_as_long_as_the_whole_run() -> None:
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=-1, max_steps=120, global_step=60, num_training_batches=float("inf"))  # type: ignore[assignment]
    assert bar.total_train_batches == 120
