"""The tiny VL-JEPA of the model's own tests."""

from tests.models.vl_jepa.conftest import *  # noqa: F403
