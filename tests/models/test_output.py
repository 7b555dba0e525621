import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models import MODELS, build, check_output


class Returns(nn.Module):
    """Returns what a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


@pytest.mark.parametrize("name", [name for name, known in MODELS.items() if known.kind == "classification"])
def test_the_reference_networks_pass(name):
    check_output(build(name, classes=7, channels=1, width=0.25), (1, 32, 32), classes=7)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x.new_zeros(2, 1000),
            r"returned a tensor \[2, 1000\] for inputs \[2, 3, 8, 8\]; .*logits \[2, 10\]",
        ),
        (lambda x: x.new_zeros(2, 10, 1, 1), r"a tensor \[2, 10, 1, 1\]"),
        (lambda x: x.new_zeros(20), r"a tensor \[20\]"),
        (lambda x: x.new_zeros(1, 10), r"a tensor \[1, 10\]"),
        (lambda x: x.sum(), r"a tensor \[\]"),
        (lambda x: x.new_zeros(2, 10).long(), r"a tensor of int64 \[2, 10\]"),
        (lambda x: (x.new_zeros(2, 10), x), r"a tuple of 2 \(a tensor \[2, 10\], a tensor \[2, 3, 8, 8\]\)"),
        (lambda x: {"logits": x, "aux": x}, r"a dict with the keys logits, aux"),
        (lambda x: {}, r"a dict with the keys \(none\)"),
        (lambda x: None, r"returned None for"),
        (lambda x: x.numpy(), r"returned an object of type ndarray for"),
        (
            lambda x: x.view(3, 5),
            r"the network's forward raised on inputs \[2, 3, 8, 8\]: RuntimeError: shape '\[3, 5\]'",
        ),
        (lambda x: {}["no\nkey"], r"forward raised on inputs \[2, 3, 8, 8\]: KeyError: "),
        (lambda x: x.no_such, r"AttributeError: 'Tensor' object has no attribute 'no_such'"),
    ],
)
def test_anything_but_logits_is_refused(function, message):
    with pytest.raises(ModelError, match=message) as caught:
        check_output(Returns(function), (3, 8, 8), classes=10)
    assert "\n" not in str(caught.value)


def test_a_network_for_other_channels_or_sizes_is_refused_in_its_own_words():
    with pytest.raises(ModelError, match=r"\[2, 1, 32, 32\]: RuntimeError: .*expected input.* to have 3 channels"):
        check_output(build("resnet20", width=0.5), (1, 32, 32), classes=10)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    with pytest.raises(ModelError, match=r"\[2, 3, 9, 9\]: RuntimeError: .*cannot be multiplied"):
        check_output(flat, (3, 9, 9), classes=10)


class Counts(nn.Module):
    """Counts its calls in a buffer, draws random numbers, and remembers the mode it ran in."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout()
        self.modes = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.modes.append(self.drop.training)
        return self.drop(self.norm(x)).mean((2, 3)) + torch.rand(1) + self.calls


def test_the_network_is_left_as_it_was():
    torch.manual_seed(5)
    model = Counts().train()
    model.norm.eval()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    check_output(model, (3, 8, 8), classes=3)
    assert model.modes == [False]
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_modes_come_back_when_the_forward_raises():
    model = nn.Sequential(nn.Dropout(), nn.Linear(5, 5)).train()
    with pytest.raises(ModelError):
        check_output(model, (3, 8, 8), classes=5)
    assert all(module.training for module in model.modules())
