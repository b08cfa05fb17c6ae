from .image import MultiBlockMaskGenerator

__all__ = ["MultiBlockMaskGenerator"]
