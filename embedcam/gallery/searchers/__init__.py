"""The search engines that people run; each file registers one."""

from typing import TYPE_CHECKING

from ...utils import lazy

if TYPE_CHECKING:
    from .faiss import FaissSearcher
    from .lancedb import LanceSearcher
    from .qdrant import QdrantSearcher

__all__ = ["FaissSearcher", "LanceSearcher", "QdrantSearcher"]

__getattr__, __dir__ = lazy.attach(
    __name__, {"FaissSearcher": ".faiss", "LanceSearcher": ".lancedb", "QdrantSearcher": ".qdrant"}
)
