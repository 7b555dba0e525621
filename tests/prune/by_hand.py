"""What HESSO and DHSPG are held against: a small network whose channels are listed by hand, a bare training loop."""

import torch
from torch import Tensor, nn

from edgewise.train import TrainConfig, TrainingMethod

MAKERS = {  # of each group, what makes its channels
    "stem": (
        *("stem.weight", "norm.weight", "norm.bias", "b.weight", "b.bias", "depthwise.weight"),
        *("d_norm.weight", "d_norm.bias", "gate_out.weight", "gate_out.bias"),
    ),
    "a": ("a.weight", "a.bias", "a_norm.weight", "a_norm.bias"),
}
CHANNELS = [("stem", c) for c in range(12)] + [("a", c) for c in range(10)]
EXAMPLE = torch.zeros(1, 3, 8, 8)


class Small(nn.Module):
    """A residual stream, a depthwise convolution, and a gate whose six inner channels a sigmoid reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.a, self.a_norm = nn.Conv2d(12, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.b = nn.Conv2d(10, 12, 1)
        self.depthwise, self.d_norm = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.gate_in, self.gate_out = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.b(torch.relu(self.a_norm(self.a(x))))
        x = torch.relu(self.d_norm(self.depthwise(x)))
        x = x * torch.sigmoid(self.gate_out(torch.sigmoid(self.gate_in(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def small_net(seed: int = 1) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Small()


def rows(tensors: dict[str, Tensor], group: str, channel: int) -> Tensor:
    """Return the numbers that make a channel, as one vector."""
    return torch.cat([tensors[name][channel].reshape(-1) for name in MAKERS[group]])


def put(tensors: dict[str, Tensor], group: str, channel: int, values: Tensor) -> None:
    """Write the numbers that make a channel."""
    place = 0
    for name in MAKERS[group]:
        row = tensors[name][channel]
        row.copy_(values[place : place + row.numel()].view(row.shape))
        place += row.numel()


class Bare:
    """A training in float64 on two fixed batches with SGD and momentum, a step at a time."""

    def __init__(self, config: TrainConfig, method: TrainingMethod | None = None) -> None:
        self.net, self.config, self.method = small_net().double().train(), config, method
        decay = config.weight_decay
        self.optimizer = torch.optim.SGD(self.net.parameters(), config.lr, momentum=0.9, weight_decay=decay)
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(2, 16, 3, 8, 8, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(4, (2, 16), generator=generator)
        self.done = 0
        if method:
            method.start(self.net, config, steps_per_epoch=self.config.batch)

    def parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.net.named_parameters()}

    def values(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.parameters().items()}

    def directions(self) -> dict[str, Tensor]:
        """Return the d of the step x - lr d that the optimizer made: its momentum."""
        return {name: self.optimizer.state[p]["momentum_buffer"] for name, p in self.net.named_parameters()}

    def step(self) -> None:
        place = self.done % 2
        loss = nn.functional.cross_entropy(self.net(self.images[place]), self.labels[place])
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            if self.method:
                self.method.gradients(self.net)
            self.optimizer.step()
            if self.method:
                self.method.after_step(self.net, self.done, self.config.lr)
        self.done += 1


def zero(tensors: dict[str, Tensor]) -> list[int]:
    """Return which of CHANNELS are exactly zero."""
    return [i for i, channel in enumerate(CHANNELS) if not rows(tensors, *channel).any()]


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=tolerance, atol=tolerance), name
