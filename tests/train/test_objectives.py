import pytest
import torch
from torch.nn import functional

from embedcam.errors import NetworkError
from embedcam.train.objectives import OBJECTIVES, Objective


def embeddings(n=12, dim=5):
    return functional.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(0)))


def test_the_triplet_loss_is_that_of_the_semi_hard_triplets():
    """Written out: negatives farther than the positive, by less than the margin; mean over those triplets."""
    z, labels = embeddings(), torch.arange(12) % 3
    cosine, losses = z @ z.T, []
    for a in range(12):
        for p in range(12):
            for n in range(12):
                if p != a and labels[p] == labels[a] != labels[n]:
                    gap = cosine[a, p] - cosine[a, n]
                    if 0 < gap <= 0.2:
                        losses.append(0.2 - gap)

    torch.testing.assert_close(Objective("triplet", 5, 3)(z, labels), torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns(name):
    torch.manual_seed(0)
    objective, labels = Objective(name, 5, 3), torch.arange(12) % 3
    free = embeddings().requires_grad_()
    optimizer = torch.optim.Adam([free, *objective.parameters()], lr=0.05)

    def separation():
        z = functional.normalize(free.detach())
        same = labels[:, None] == labels[None]
        return float((z @ z.T)[same].mean() - (z @ z.T)[~same].mean())

    before = separation()
    for _ in range(60):
        loss = objective(functional.normalize(free), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert separation() > before + 0.3


def test_proxies_are_parameters_of_the_objective():
    assert sum(p.numel() for p in Objective("proxy-anchor", 5, 3).parameters()) == 15
    assert not list(Objective("triplet", 5, 3).parameters())


def test_wrong_objectives_are_named():
    with pytest.raises(NetworkError, match="did you mean triplet"):
        Objective("tripplet", 5, 3)
    with pytest.raises(NetworkError, match="'arcface' needs the cosine metric"):
        Objective("arcface", 5, 3, "euclidean")
