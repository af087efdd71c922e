"""What must hold on a GPU. These tests need one; `python -m bench.gpu` measures its speed."""

import pytest
import torch

from stages.learning.device import set_up_device
from stages.learning.inference import Images, predict
from stages.learning.loop import make_optimizer, set_seed, train
from stages.learning.weights import untrained
from stages.support.params import Precision, Variant, load_params
from tests.conftest import TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
SGD = Variant(activation="relu", dropout=0.5, optimizer="sgd", lr=0.01, momentum=0.9)


def trained(device: torch.device, precision: Precision) -> torch.nn.Module:
    """Return a tiny network after an epoch on random images."""
    params = load_params()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, 1, params.data.side, params.data.side), generator=generator)
    labels = torch.randint(0, 10, (96,), generator=generator)
    split = Images(images.to(torch.uint8).to(device), labels.to(device))
    set_seed(0, epoch=0)
    described = params.training("sgd", 0) | SGD.model_dump() | TINY | {"precision": precision}
    network = untrained(described).to(device)
    splits = {"train": split, "test": split}
    list(train(network, make_optimizer(network, SGD), splits, 0, range(1, 2), 32))
    return network


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_epoch_gives_the_same_bits_again(precision: Precision) -> None:
    device = set_up_device("cuda")
    first, second = (trained(device, precision).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_logits_are_those_of_a_cpu() -> None:
    network = trained(set_up_device("cuda"), "fp32")
    images = torch.randint(0, 256, (50, 1, 32, 32), dtype=torch.uint8)
    on_gpu = predict(network, images.cuda())
    torch.testing.assert_close(predict(network.cpu(), images), on_gpu, rtol=1e-3, atol=1e-3)
