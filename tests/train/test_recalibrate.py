import pytest
import torch
from torch import Tensor, nn

from edgewise.data import Split, normalize
from edgewise.errors import DataError, ModelError
from edgewise.train import TrainConfig, evaluate, fit, recalibrate
from train.tiny import TASK, same, tensors, tiny_net, tiny_split

SPLIT = tiny_split(96)


def two_pass_statistics(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over batches of each batch's mean and unbiased variance per channel, in float64, by two passes."""
    means, variances = [], []
    for batch in inputs:
        values = batch.double().transpose(0, 1).flatten(1)
        mean = values.sum(dim=1) / values.shape[1]
        means.append(mean)
        variances.append(((values - mean[:, None]) ** 2).sum(dim=1) / (values.shape[1] - 1))
    return torch.stack(means).mean(dim=0), torch.stack(variances).mean(dim=0)


def test_the_first_norm_has_the_two_pass_statistics_of_its_inputs() -> None:
    net = tiny_net()
    images = normalize(SPLIT.images, TASK.mean, TASK.std)
    mean, variance = two_pass_statistics([net[0](images).detach()])  # one batch: of all images
    measured = recalibrate(net, TASK, SPLIT, images=96, batch=96)
    assert torch.allclose(measured[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(measured[1].running_var.double(), variance, rtol=1e-5)


def test_every_norm_averages_over_its_batches() -> None:
    net = tiny_net(dropout=0.9)
    seen: dict[int, list[Tensor]] = {1: [], 4: []}
    for place, inputs in seen.items():
        net[place].register_forward_hook(lambda module, args, out, inputs=inputs: inputs.append(args[0].clone()))
    measured = recalibrate(net, TASK, SPLIT, images=90, batch=20)  # 4 full batches
    for place, inputs in seen.items():
        assert [len(batch) for batch in inputs] == [20] * 4
        mean, variance = two_pass_statistics(inputs)
        assert torch.allclose(measured[place].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(measured[place].running_var.double(), variance, rtol=1e-5)
        assert measured[place].num_batches_tracked == 4


def test_only_statistics_change_and_the_callers_network_does_not() -> None:
    net = tiny_net()
    net[4].eval()
    net[1].momentum = 0.3
    before, random_state, modes = tensors(net), torch.get_rng_state(), [m.training for m in net.modules()]
    measured = recalibrate(net, TASK, SPLIT)
    assert same(net, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in net.modules()] == modes
    assert [module.training for module in measured.modules()] == modes
    assert [measured[1].momentum, measured[4].momentum] == [0.3, 0.1]
    assert same(dict(measured.named_parameters()), dict(net.named_parameters()))
    changed = {name for name, buffer in measured.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == {f"{place}.{what}" for place in (1, 4) for what in dict(net[1].named_buffers())}


def test_old_statistics_are_forgotten() -> None:
    net, spoilt = tiny_net(), tiny_net()
    for place in (1, 4):
        spoilt[place].running_mean.fill_(1e6)
        spoilt[place].running_var.fill_(float("nan"))
    assert same(recalibrate(net, TASK, SPLIT), recalibrate(spoilt, TASK, SPLIT))


def test_one_seed_draws_one_set_of_images_and_another_seed_another() -> None:
    first, second, other = (recalibrate(tiny_net(), TASK, SPLIT, images=32, seed=seed) for seed in (0, 0, 1))
    assert same(first, second)
    assert not same(first, other)


def test_a_network_without_statistics_comes_back_as_an_equal_copy() -> None:
    for net in (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), nn.BatchNorm2d(3, track_running_stats=False)):
        copied = recalibrate(net, TASK, SPLIT)
        assert copied is not net
        assert same(copied, net)


def test_it_mends_a_network_whose_weights_were_scaled() -> None:
    trained = fit(tiny_net(), TASK, tiny_split(400), TrainConfig(epochs=6, batch=32, lr=0.05, augment=("crop",)))
    with torch.no_grad():
        # The norm behind each channel would undo its factor, were the statistics right.
        trained[0].weight.mul_(torch.logspace(-1, 1, 8).view(-1, 1, 1, 1))
    assert evaluate(trained, TASK, SPLIT) < 0.9
    assert evaluate(recalibrate(trained, TASK, tiny_split(400)), TASK, SPLIT) > 0.95


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="images is 1"):
        recalibrate(tiny_net(), TASK, SPLIT, images=1)
    with pytest.raises(ValueError, match="batch is 0"):
        recalibrate(tiny_net(), TASK, SPLIT, batch=0)
    with pytest.raises(DataError, match="one image"):
        recalibrate(tiny_net(), TASK, tiny_split(1))
    with pytest.raises(DataError, match="images are uint8"):
        recalibrate(tiny_net(), TASK, Split(SPLIT.images[:, :1], SPLIT.labels))
    with pytest.raises(ModelError, match="forward raised on inputs"):
        recalibrate(tiny_net(channels=1), TASK, SPLIT)
