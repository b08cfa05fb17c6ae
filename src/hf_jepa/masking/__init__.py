from .blockwise import BlockwiseMaskGenerator, masked_indices, visible_indices
from .image import MultiBlockMaskGenerator
from .semantic_tube import draw_displacements
from .text import pack_examples, resolve_layout
from .text_official import pack_official

__all__ = [
    "BlockwiseMaskGenerator",
    "MultiBlockMaskGenerator",
    "draw_displacements",
    "masked_indices",
    "pack_examples",
    "pack_official",
    "resolve_layout",
    "visible_indices",
]
