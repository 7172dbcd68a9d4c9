# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A small network with every layer that per-sample Jacobians know, and Jacobians from `torch.func`."""

import torch
from torch import nn


NAMES = ["bn.weight", "bn.bias", "bn2.weight", "bn2.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]


class Net(nn.Module):
    """Convolution, BatchNorm, LayerNorm and a head, with statistics that are not those of the data."""

    def __init__(self, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, classes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            for bn in (self.bn, self.bn2):
                bn.running_mean.copy_(torch.randn(len(bn.running_mean), generator=generator))
                bn.running_var.copy_(torch.rand(len(bn.running_var), generator=generator) + 0.5)

    def forward(self, pixel_values):
        x = self.bn(self.conv(pixel_values)).relu()
        x = self.bn2(self.conv2(x)).tanh()
        return self.head(self.norm(x.mean((2, 3))))


def dense_jacobian(model, images, names, outputs=lambda z: z):
    model.eval()
    values = {name: dict(model.named_parameters())[name].detach() for name in names}
    jacobian = torch.func.jacrev(lambda v: outputs(torch.func.functional_call(model, v, (images,))))(values)
    return torch.cat([jacobian[name].flatten(2) for name in names], -1)
