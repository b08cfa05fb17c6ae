from .components_vl_jepa import load_text_tower
from .configuration_vl_jepa import VLJepaConfig
from .decoder_vl_jepa import VLJepaTextDecoder
from .modeling_vl_jepa import VLJepaModel
from .objective_vl_jepa import VLJepaOutput, vl_jepa_loss
from .processing_vl_jepa import VLJepaProcessor
from .text_encoder_vl_jepa import VLJepaTextEncoder

__all__ = [
    "VLJepaConfig",
    "VLJepaModel",
    "VLJepaOutput",
    "VLJepaProcessor",
    "VLJepaTextDecoder",
    "VLJepaTextEncoder",
    "load_text_tower",
    "vl_jepa_loss",
]
