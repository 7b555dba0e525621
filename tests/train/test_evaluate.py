import pytest
import torch
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.errors import DataError, ModelError, UnknownName
from edgewise.train import evaluate
from train.tiny import TASK, same, tensors, tiny_net, tiny_split

SPLIT = tiny_split(50)


class Brightest(nn.Module):
    """Answers which quarter of the rows is brightest: always right on the tiny task."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 3)).unflatten(1, (4, 2)).mean(dim=2)


def test_by_hand_right_answers_are_counted() -> None:
    assert evaluate(Brightest(), TASK, SPLIT) == 1.0
    wrong = Split(SPLIT.images, SPLIT.labels.clone())
    wrong.labels[:10] = (wrong.labels[:10] + 1) % 4
    assert evaluate(Brightest(), TASK, wrong) == pytest.approx(0.8)


@pytest.mark.parametrize("batch", [1, 7, 50, 512])
def test_the_batch_does_not_matter(batch: int) -> None:
    assert evaluate(Brightest(), TASK, SPLIT, batch=batch) == 1.0


def test_it_is_deterministic_and_leaves_the_network_alone() -> None:
    net = tiny_net(dropout=0.9)
    net[4].eval()
    modes, before, random_state = [m.training for m in net.modules()], tensors(net), torch.get_rng_state()
    assert evaluate(net, TASK, SPLIT) == evaluate(net, TASK, SPLIT)
    assert [module.training for module in net.modules()] == modes
    assert same(net, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error() -> None:
    net = tiny_net(classes=5)
    with pytest.raises(ModelError, match=r"output is \[50, 5\]; it must be \[50, 4\]"):
        evaluate(net, TASK, SPLIT)
    assert all(module.training for module in net.modules())


def test_bfloat16_is_nearly_float32() -> None:
    net = tiny_net()
    assert evaluate(net, TASK, SPLIT, precision="bfloat16") == pytest.approx(evaluate(net, TASK, SPLIT), abs=0.1)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="batch is 0"):
        evaluate(tiny_net(), TASK, SPLIT, batch=0)
    with pytest.raises(DataError, match="no images"):
        evaluate(tiny_net(), TASK, tiny_split(0))
    with pytest.raises(UnknownName, match='device "gpu" is not here'):
        evaluate(tiny_net(), TASK, SPLIT, device="gpu")
    broken = tiny_net()
    torch.nn.init.constant_(broken[0].weight, float("nan"))
    with pytest.raises(ModelError, match="NaN or infinity"):
        evaluate(broken, TASK, SPLIT)
