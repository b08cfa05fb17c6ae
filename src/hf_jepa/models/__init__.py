from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cjepa import *
    from .data2vec_vision import *
    from .ijepa import *
    from .joint_embedding import *
    from .latent_world_model import *
    from .llm_jepa import *
    from .vjepa import *
    from .vjepa2_ac import *
    from .vl_jepa import *
