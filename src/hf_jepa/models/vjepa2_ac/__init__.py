from .configuration_vjepa2_ac import VJepa2ACConfig
from .modeling_vjepa2_ac import VJepa2ACModel

__all__ = ["VJepa2ACConfig", "VJepa2ACModel"]
