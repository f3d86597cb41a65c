"""Batch norm over several processes equals batch norm over the whole batch in one."""

import pytest

COMPARE = """
import torch
from torch import nn
from embedcam.train.batch_norm import synchronized
from embedcam.utils import distributed

def model():
    torch.manual_seed(1)
    maps = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2)]
    vectors = [nn.Flatten(), nn.BatchNorm1d(16, momentum=None), nn.Tanh(), nn.BatchNorm1d(16, affine=False)]
    return nn.Sequential(*maps, *vectors).train()

group = distributed.join()
torch.manual_seed(0)
images, weights = torch.randn(7, 3, 9, 9), torch.randn(7, 16)
one, shared = model(), model()
(one(images) * weights).sum().backward()
own = {parts}[group.rank]
with synchronized(shared, group):
    (shared(images[own]) * weights[own]).sum().backward()
for parameter, other in zip(one.parameters(), shared.parameters(), strict=True):
    torch.testing.assert_close(group.add_up(other.grad), parameter.grad, rtol=1e-4, atol=1e-5)
for buffer, other in zip(one.buffers(), shared.buffers(), strict=True):
    torch.testing.assert_close(other, buffer)
assert not any("forward" in vars(module) for module in shared.modules())
distributed.leave()
raise SystemExit
"""


@pytest.mark.parametrize("parts", [[[0, 2, 4, 6], [1, 3, 5]], [[], [0, 1, 2, 3, 4, 5, 6]]], ids=["shared", "one empty"])
def test_gradients_and_running_statistics_are_those_of_the_whole_batch(processes, parts):
    done = processes(2, before=COMPARE.replace("{parts}", str(parts)))
    assert [each.returncode for each in done] == [0, 0], done
