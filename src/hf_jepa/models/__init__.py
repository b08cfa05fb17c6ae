"""One folder per family: configuration and modeling. Importing any of them registers all with the Auto classes."""

from typing import TYPE_CHECKING

from ..methods.registration import register_all

if TYPE_CHECKING:
    from .data2vec_vision import *
    from .ijepa import *
    from .joint_embedding import *
    from .latent_world_model import *
    from .llm_jepa import *
    from .vjepa import *
    from .vjepa2_ac import *
    from .vl_jepa import *

register_all()
