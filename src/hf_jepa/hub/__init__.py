"""Publishing: what a release holds, its card, and the way to the Hub."""

from .card import render_card
from .environment import environment_info
from .release import PushError, check_release, load_pretraining, push_release, save_release

__all__ = [
    "PushError",
    "check_release",
    "environment_info",
    "load_pretraining",
    "push_release",
    "render_card",
    "save_release",
]
