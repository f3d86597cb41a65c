"""What images are asked: why they are near something, or nearer to it than to something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..database.weight_database import WeightDatabase
from ..errors import DataError


class Question(NamedTuple):
    """One question for each image of a batch.

    Attributes:
        target: (B, D) embeddings; the question is why an image is near its target.
        versus: (B, D) embeddings; why nearer to the target than to these. None asks for the target alone.
        cluster: int64 (B,) index of the cluster whose centroid the target is; None where it is no centroid.
    """

    target: Tensor
    versus: Tensor | None = None
    cluster: Tensor | None = None

    def direction(self, common: Tensor) -> Tensor:
        """Compute the direction along which embeddings answer the question.

        Args:
            common: (D,), the embedding that counts as no evidence.

        Returns:
            (B, D).
        """
        return self.target - (common if self.versus is None else self.versus)


class Side(NamedTuple):
    """One side of a question, for each image of a batch.

    Attributes:
        embeddings: (B, D).
        names: B names.
        clusters: int64 (B,) index of the cluster whose centroid the embedding is; None for other embeddings.
    """

    embeddings: Tensor
    names: list[str]
    clusters: Tensor | None


@dataclass(frozen=True)
class Reference:
    """What images are compared with: the nearest of several embeddings, or one given for each image.

    Attributes:
        embeddings: float32 (M, D), of length 1 if the network is cosine.
        names: M names.
        clusters: int64 (M,) index of the cluster whose centroid each is; None for other embeddings.
        each: Whether there is one for each image; a single one is for all.
    """

    embeddings: Tensor
    names: Sequence[str]
    clusters: Tensor | None = None
    each: bool = False

    @classmethod
    def of_clusters(cls, database: WeightDatabase, clusters: Sequence[int], *, each: bool = False) -> Reference:
        """Refer to centroids.

        Args:
            database: Whose clusters.
            clusters: M indices.
            each: Whether there is one for each image.

        Returns:
            The reference.

        Raises:
            DataError: If there is no such cluster.
        """
        for cluster in clusters:
            if not 0 <= cluster < database.clusters:
                raise DataError(
                    f"there is no cluster {cluster}; choose one of 0 to {database.clusters - 1}, see embedcam inspect"
                )
        indices = torch.tensor(clusters, dtype=torch.int64)
        centroids = torch.from_numpy(database.centroids)[indices]
        return cls(centroids, [database.describe(cluster) for cluster in clusters], indices, each)

    def choose(self, embeddings: Tensor, metric: str) -> Side:
        """Choose what each image is compared with.

        Args:
            embeddings: (B, D) finite.
            metric: "cosine" or "euclidean".

        Returns:
            The nearest embedding for each image, or the one that was given for it.

        Raises:
            DataError: If there are not as many images as embeddings were given.
        """
        own, count = self.embeddings.to(embeddings.device), len(embeddings)
        if self.each and len(own) > 1:
            if len(own) != count:
                raise DataError(f"got {len(own)} references for {count} images; give one, or one per image")
            chosen = torch.arange(count, device=own.device)
        elif metric == "cosine":
            chosen = (embeddings @ own.T).argmax(dim=1)
        else:
            chosen = torch.cdist(embeddings, own).argmin(dim=1)
        clusters = None if self.clusters is None else self.clusters.to(chosen.device)[chosen]
        return Side(own[chosen], [self.names[index] for index in chosen.tolist()], clusters)
