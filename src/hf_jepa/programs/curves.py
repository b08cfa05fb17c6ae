"""The one picture that every run has."""

from pathlib import Path

from transformers import Trainer


def draw_curves(trainer: Trainer, folder: Path) -> dict[Path, str]:
    """The run's curves with their caption; none of a run that ended before its first log."""
    from ..visualization import plot_training_curves

    history = trainer.state.log_history
    if not any("loss" in entry for entry in history):
        return {}
    return {
        plot_training_curves(history, folder / "curves.png"): "The run: loss, schedules, feature statistics, speed."
    }
