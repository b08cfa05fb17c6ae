from .distances import distance, normalize_targets
from .vicreg import VICRegTerms, multi_view_vicreg, vicreg

__all__ = ["VICRegTerms", "distance", "multi_view_vicreg", "normalize_targets", "vicreg"]
