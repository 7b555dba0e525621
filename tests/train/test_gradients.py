"""The gradients that criteria look at: those of the loss, on batches drawn by the seed, with the network left alone."""

import pytest
import torch

from edgewise.train import gradients
from train.tiny import TASK, same, tensors, tiny_net, tiny_split


def test_a_batch_of_all_images_gives_the_gradient_of_the_loss() -> None:
    net, split = tiny_net(), tiny_split(16)
    (found,) = gradients(net, TASK, split, images=16, batch=16)
    inputs, targets = TASK.batch(split, torch.arange(16), augment=False)
    TASK.loss(net.eval()(inputs), targets).backward()
    for name, parameter in net.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_batches_are_whole_and_the_same_for_one_seed_and_the_network_is_left_alone() -> None:
    net, split = tiny_net().train(), tiny_split()
    before, random = tensors(net), torch.get_rng_state()
    first, again, other = (list(gradients(net, TASK, split, images=15, batch=4, seed=s)) for s in (0, 0, 1))
    assert len(first) == 3
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    assert not torch.equal(first[0]["0.weight"], other[0]["0.weight"])
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert same(before, net)
    assert torch.equal(random, torch.get_rng_state())


def test_fewer_images_than_a_batch_make_one() -> None:
    net, split = tiny_net(), tiny_split()
    assert len(list(gradients(net, TASK, split, images=3, batch=64))) == 1
    with pytest.raises(ValueError, match="images is 0"):
        next(gradients(net, TASK, split, images=0))
