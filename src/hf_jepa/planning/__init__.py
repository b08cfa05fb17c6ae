"""Planning with world models: search plans in latent space, and close the loop over an environment."""

from .base_planner import Planner, PlanTrace
from .cem import CEMPlanner
from .gradient import GradientPlanner
from .mppi import MPPIPlanner
from .policy import MPCPolicy

__all__ = ["CEMPlanner", "GradientPlanner", "MPCPolicy", "MPPIPlanner", "PlanTrace", "Planner"]
