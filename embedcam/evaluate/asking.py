"""How methods are asked for something else than the image's own cluster."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..database.weight_database import WeightDatabase
from ..explain import Explainer
from ..explain.contributions import contributions, origin
from ..explain.maps import place
from ..explain.question import Question
from ..gradient import GradCAM, Similarity
from ..nets import layers
from ..nets.network import Network
from .faithfulness import Explain
from .grid import Ask


def of_explainer(explainer: Explainer) -> Ask:
    """Ask an explainer for clusters and partners, as `Explainer.asking` does, with one forward pass for all questions.

    Args:
        explainer: The explainer; its transfer must need no exemplars.

    Returns:
        What can be asked for clusters and for partners.
    """
    module = explainer.module

    @torch.inference_mode()
    def ask(images: Tensor, questions: Tensor) -> NDArray[np.float32]:
        if questions.is_floating_point():
            asked = [Question(each) for each in questions.unbind(dim=1)]
        else:
            asked = [Question(module.centroids[each], cluster=each) for each in questions.unbind(dim=1)]
        with layers.evaluating(explainer.net):
            seen = module.run(images)
        size = (int(images.shape[2]), int(images.shape[3]))
        maps = [module.explain(seen, size, question=question).raw for question in asked]
        stacked: NDArray[np.float32] = torch.stack(maps, dim=1).cpu().numpy()
        return stacked

    return ask


def of_contributions(net: Network, database: WeightDatabase) -> Ask:
    """Ask for the positive contributions of the cells to the similarity with a partner, as `Against` maps them.

    Args:
        net: A decomposable network.
        database: Its database, for the positions of the cells and the origin.

    Returns:
        What can be asked for partners.
    """
    common = torch.from_numpy(origin(database)).to(net.device)

    @torch.inference_mode()
    def ask(images: Tensor, partners: Tensor) -> NDArray[np.float32]:
        with layers.evaluating(net):
            cells = net.cells(net.activations(images))
        size = (int(images.shape[2]), int(images.shape[3]))
        asked = (contributions(cells, each - common, common).densities for each in partners.to(common).unbind(dim=1))
        maps = [place(densities, database.geometry, size) for densities in asked]
        placed: NDArray[np.float32] = torch.stack(maps, dim=1).clip(min=0).cpu().numpy()
        return placed

    return ask


def of_similarity(net: Network, layer: str) -> Ask:
    """Ask Grad-CAM of the similarity to a partner: one backward pass for each question.

    Args:
        net: The network.
        layer: Dotted name of the layer.

    Returns:
        What can be asked for partners.
    """
    cam = GradCAM(net, layer)

    def ask(images: Tensor, partners: Tensor) -> NDArray[np.float32]:
        asked = [cam(images, Similarity(each)).raw for each in partners.unbind(dim=1)]
        return np.stack(asked, axis=1)

    return ask


def unasked(explain: Explain) -> Ask:
    """Give the same map whatever is asked: what a method scores that cannot be asked.

    Args:
        explain: The method.

    Returns:
        A method that ignores clusters and partners; its grid share is 0.25 where its maps have heat.
    """

    def ask(images: Tensor, questions: Tensor) -> NDArray[np.float32]:
        raw = explain(images).raw
        return np.repeat(raw[:, None], questions.shape[1], axis=1)

    return ask
