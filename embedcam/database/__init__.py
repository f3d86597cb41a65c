"""The weight database: how it is made, and the file it lives in."""

from .record import Exemplars, Fusion, NetworkRecord, Refinement, WeightDatabase

__all__ = ["Exemplars", "Fusion", "NetworkRecord", "Refinement", "WeightDatabase"]
