"""Where `write_release` was before it became a method of every trainer; the old name goes in the next version."""

import warnings
from pathlib import Path
from typing import Any

from .base_trainer import BaseTrainer


def write_release(trainer: BaseTrainer, *args: Any, **kwargs: Any) -> Path:
    """
    `trainer.write_release(...)`, under its former name.

    Args:
        trainer ([`BaseTrainer`]): whose model is released.
        args, kwargs: as for the method.

    Returns:
        `Path`: the folder.
    """
    warnings.warn("`write_release(trainer)` is `trainer.write_release()` now.", FutureWarning, stacklevel=2)
    return trainer.write_release(*args, **kwargs)
