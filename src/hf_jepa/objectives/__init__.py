from .distances import distance, normalize_targets
from .generalized_gaussian import (
    expected_active_fraction,
    location_for_active_fraction,
    rectified_moments,
    rgg_samples,
    sigma_for,
)
from .infonce import InfoNCE, info_nce, nt_xent
from .rdmreg import RDMReg, rdmreg
from .sigreg import SIGReg, collapse_ratio, epps_pulley, random_directions, sigreg
from .uniformity import alignment, uniformity, variance_hinge
from .vicreg import VICReg, VICRegTerms, multi_view_vicreg, vicreg
from .visreg import VISReg, VISRegTerms, visreg
from .weak_sigreg import WeakSIGReg, weak_sigreg

__all__ = [
    "InfoNCE",
    "RDMReg",
    "SIGReg",
    "VICReg",
    "VICRegTerms",
    "VISReg",
    "VISRegTerms",
    "WeakSIGReg",
    "alignment",
    "collapse_ratio",
    "distance",
    "epps_pulley",
    "expected_active_fraction",
    "info_nce",
    "location_for_active_fraction",
    "multi_view_vicreg",
    "normalize_targets",
    "nt_xent",
    "random_directions",
    "rdmreg",
    "rectified_moments",
    "rgg_samples",
    "sigma_for",
    "sigreg",
    "uniformity",
    "variance_hinge",
    "vicreg",
    "visreg",
    "weak_sigreg",
]
