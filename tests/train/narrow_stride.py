"""Trains what crashed the process: a filter of one pixel and few inputs that skips pixels, in channels_last."""

import torch
from torch import nn

from edgewise.train.forward import forward, image_layout, weight_layout

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1, 2, bias=False), nn.Conv2d(16, 8, 1))
inputs = torch.randn(4, 3, 64, 64)
model(inputs).square().mean().backward()
expected = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
model.zero_grad()
weight_layout(model, torch.channels_last)
for _ in range(20):
    forward(model, image_layout(inputs)).square().mean().backward()
for parameter, gradient in zip(model.parameters(), expected, strict=True):
    torch.testing.assert_close(parameter.grad, 20 * gradient, rtol=1e-4, atol=1e-5)
print("alive")
