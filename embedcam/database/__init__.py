"""The weight database and its file."""

from .record import Exemplars, Fusion, NetworkRecord, Refinement
from .weight_database import WeightDatabase

__all__ = ["Exemplars", "Fusion", "NetworkRecord", "Refinement", "WeightDatabase"]
