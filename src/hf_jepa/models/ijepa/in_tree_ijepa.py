"""One repair of in-tree I-JEPA, for models whose images are not square."""

import functools

import torch
from transformers.models.ijepa.modeling_ijepa import IJepaEmbeddings

_in_tree = IJepaEmbeddings.interpolate_pos_encoding


@functools.wraps(_in_tree)
def _interpolate_pos_encoding(
    self: IJepaEmbeddings, embeddings: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    if (height, width) == tuple(self.image_size):
        return self.position_embeddings
    return _in_tree(self, embeddings, height, width)


def use_table_at_configured_size() -> None:
    """
    Makes `interpolate_pos_encoding=True` at the configured size the stored table, as it is for square images. In-tree
    takes every table for that of a square: at another size of the config it ends in an error of shapes, or, where the
    number of patches happens to be a square number, interpolates rows into columns. Nothing else changes.
    """
    IJepaEmbeddings.interpolate_pos_encoding = _interpolate_pos_encoding
