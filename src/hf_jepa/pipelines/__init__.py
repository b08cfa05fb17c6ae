from .vl_jepa import VLJepaPipeline

__all__ = ["VLJepaPipeline"]
