"""The recorded runs that a converted file is held against."""

from tests.models.data2vec_vision.conftest import inputs, model, official, official_mask, official_model, tiny_config

__all__ = ["inputs", "model", "official", "official_mask", "official_model", "tiny_config"]
