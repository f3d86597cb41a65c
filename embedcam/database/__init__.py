"""The weight database: how it is made, and the file it lives in."""

from .record import Closer, Exemplars, Fusion, NetworkRecord, WeightDatabase

__all__ = ["Closer", "Exemplars", "Fusion", "NetworkRecord", "WeightDatabase"]
