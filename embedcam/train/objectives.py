"""Losses and miners of pytorch-metric-learning, by name."""

from __future__ import annotations

import difflib

from pytorch_metric_learning import distances, losses, miners
from torch import Tensor, nn

from ..errors import NetworkError

OBJECTIVES = ("triplet", "arcface", "proxy-anchor", "multi-similarity")


class Objective(nn.Module):
    """A loss and its miner.

    Args:
        name: "triplet" (semi-hard), "arcface", "proxy-anchor" or "multi-similarity".
        dim: Number D of dimensions of the embedding.
        classes: Number of labels.
        metric: "cosine" or "euclidean"; only triplets can be Euclidean.

    Raises:
        NetworkError: If the objective is unknown or does not support the metric.

    Source:
        FaceNet (arXiv 1503.03832), ArcFace (1801.07698), Proxy Anchor (2003.13911), Multi-Similarity (1904.06627).
    """

    def __init__(self, name: str, dim: int, classes: int, metric: str = "cosine") -> None:
        super().__init__()
        if name not in OBJECTIVES:
            near = difflib.get_close_matches(name, OBJECTIVES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(OBJECTIVES)}"
            raise NetworkError(f"unknown objective {name!r}; {hint}")
        if metric != "cosine" and name != "triplet":
            raise NetworkError(
                f"objective {name!r} needs the cosine metric; use --metric cosine or --objective triplet"
            )
        self.miner: nn.Module | None = None
        if name == "triplet":
            distance = (
                distances.CosineSimilarity() if metric == "cosine" else distances.LpDistance(normalize_embeddings=False)
            )
            margin = 0.2 if metric == "cosine" else 1.0
            self.loss: nn.Module = losses.TripletMarginLoss(margin=margin, distance=distance)
            self.miner = miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=distance)
        elif name == "arcface":
            self.loss = losses.ArcFaceLoss(classes, dim)
        elif name == "proxy-anchor":
            self.loss = losses.ProxyAnchorLoss(classes, dim)
        else:
            self.loss = losses.MultiSimilarityLoss()
            self.miner = miners.MultiSimilarityMiner()

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            embeddings: (B, D).
            labels: (B,) in 0..classes - 1.

        Returns:
            The loss, a scalar.
        """
        loss: Tensor = (
            self.loss(embeddings, labels)
            if self.miner is None
            else self.loss(embeddings, labels, self.miner(embeddings, labels))
        )
        return loss
