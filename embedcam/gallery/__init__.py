"""Galleries: what is precomputed of the images that are searched, so that matches can be explained."""

from typing import TYPE_CHECKING

from ..utils import lazy

if TYPE_CHECKING:
    from .assembly import merge
    from .gallery import Gallery
    from .matches import Matches
    from .searchers import FaissSearcher, LanceSearcher, QdrantSearcher
    from .searching import Engine, Hit, Searcher, open_searcher
    from .writer import index

__all__ = [
    "Engine",
    "FaissSearcher",
    "Gallery",
    "Hit",
    "LanceSearcher",
    "Matches",
    "QdrantSearcher",
    "Searcher",
    "index",
    "merge",
    "open_searcher",
]

__getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "Gallery": ".gallery",
        "Matches": ".matches",
        "index": ".writer",
        "merge": ".assembly",
        **dict.fromkeys(("Engine", "Hit", "Searcher", "open_searcher"), ".searching"),
        **dict.fromkeys(("FaissSearcher", "LanceSearcher", "QdrantSearcher"), ".searchers"),
    },
)
