from .configuration_conv_encoder import ConvEncoderConfig
from .configuration_latent_world_model import LatentWorldModelConfig
from .encoder_conv import ConvEncoderModel
from .modeling_latent_world_model import LatentWorldModel

__all__ = ["ConvEncoderConfig", "ConvEncoderModel", "LatentWorldModel", "LatentWorldModelConfig"]
