"""Every network of `benchmarks/network_zoo.py` is explained rightly without a layer named, or refused with a reason."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# One with and one without class token run in `make test`, the others in `make test-networks`.
ALWAYS = ("hf:ViT", "hf:Beit")
REFUSED = {
    "timm:coat_tiny": "the layout of the last layers",
    "timm:crossvit_tiny_240": "joins branches",
    "timm:efficientvim_m1": "does not pass",
    "timm:levit_128s": "cannot be measured",
    "torchreid:hacnn": "does not pass",
}


@pytest.fixture(scope="module")
def networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("networks")


def names():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        found = importlib.import_module("network_zoo").names()
    return [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.networks) for name in found]


@pytest.mark.parametrize("name", names())
def test_a_network_is_right_or_refused_with_a_reason(networks, name):
    try:
        row = networks.check(name, exported=name not in ALWAYS, command_line=name not in ALWAYS)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    if name in REFUSED:
        assert row.verdict.startswith("refused")
        assert REFUSED[name] in row.verdict
    else:
        assert row.verdict == "right"
