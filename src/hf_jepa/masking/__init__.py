from .blockwise import BlockwiseMaskGenerator, masked_indices, visible_indices
from .image import MultiBlockMaskGenerator
from .semantic_tube import draw_displacements
from .text import pack_examples, resolve_layout
from .text_official import pack_official
from .tube import TubeMaskGenerator
from .video import IMAGE_BLOCKS, LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator

__all__ = [
    "IMAGE_BLOCKS",
    "LONG_RANGE",
    "SHORT_RANGE",
    "BlockwiseMaskGenerator",
    "MultiBlock3DMaskGenerator",
    "MultiBlockMaskGenerator",
    "TubeMaskGenerator",
    "draw_displacements",
    "masked_indices",
    "pack_examples",
    "pack_official",
    "resolve_layout",
    "visible_indices",
]
