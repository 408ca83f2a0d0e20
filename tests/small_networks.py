"""A dozen small networks, each with one structure that pruning must follow, for the tests of the core."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sirfp.network.forward import tensors

INPUT = (2, 3, 16, 16)


def build(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """Randomises the statistics, scales and shifts of a network's norms."""
    torch.manual_seed(seed)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def random_keep(found, seed: int) -> np.ndarray:
    """A random choice of atoms, at least one of each group."""
    generator = np.random.default_rng(seed)
    keep = generator.random(found.atoms) < generator.uniform(0.2, 0.9)
    for group in found:
        part = keep[found.spans[group.name]]
        part[generator.integers(group.size)] = True
    return keep


def _conv(a: int, b: int, kernel: int = 3, **options) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(b))


class Residual(nn.Module):
    """Two blocks on one stream, the first with a projection shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = _conv(3, 12)
        self.a, self.b, self.short = _conv(12, 10), _conv(10, 16), _conv(12, 16, 1)
        self.c, self.d = _conv(16, 14), _conv(14, 16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.b(F.relu(self.a(x))) + self.short(x))
        return self.head(F.relu(x + self.d(F.relu(self.c(x)))))


class Unsaved(nn.Module):
    """A buffer of the channels' width that is not saved in files."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.register_buffer("ramp", torch.linspace(1, 2, 12)[:, None, None], persistent=False)

    def forward(self, x):
        return self.b(self.a(x) * self.ramp)


class Strided(nn.Module):
    """A block whose shortcut is a strided 1 x 1 convolution, as in a ResNet.

    Args:
        kind: the class of the shortcut.
        widths: channels before and after the block.
    """

    def __init__(self, kind: type[nn.Module] = nn.Conv2d, widths: tuple[int, int] = (12, 16)):
        super().__init__()
        before, after = widths
        self.stem = _conv(3, before)
        self.a, self.b = _conv(before, 10, stride=2), _conv(10, after)
        self.short, self.norm = kind(before, after, 1, 2, bias=False), nn.BatchNorm2d(after)
        self.head = nn.Conv2d(after, 5, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.b(F.relu(self.a(x))) + self.norm(self.short(x))))


class Dense(nn.Module):
    """Each layer reads the concatenation of all before it (DenseNet)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([_conv(3, 8), _conv(8, 6), _conv(14, 6), _conv(20, 6)])
        self.norm, self.head = nn.BatchNorm2d(26), nn.Conv2d(26, 4, 1)

    def forward(self, x):
        features = [F.relu(self.layers[0](x))]
        for layer in self.layers[1:]:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return self.head(self.norm(torch.cat(features, 1)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = _conv(3, 24), _conv(24, 48, groups=4), _conv(48, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class Depthwise(nn.Module):
    """Inverted residual, and a depthwise layer with a multiplier."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.dw, self.down = _conv(3, 8), _conv(8, 32, 1), _conv(32, 32, groups=32), _conv(32, 8, 1)
        self.twice, self.head = _conv(8, 16, groups=8), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.a(x)
        x = x + self.down(F.relu6(self.dw(F.relu6(self.up(x)))))
        return self.head(F.relu(self.twice(x)))


class Shuffled(nn.Module):
    """Channel shuffle between grouped convolutions (ShuffleNet)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = _conv(3, 24), _conv(24, 24, groups=3), _conv(24, 24, groups=3)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.c(x)))


class Split(nn.Module):
    """Splits channels into halves, processes each, and concatenates them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = _conv(3, 20), _conv(10, 12), _conv(10, 12)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x):
        first, second = F.relu(self.a(x)).chunk(2, dim=1)
        return self.head(torch.cat([F.relu(self.b(first)), F.relu(self.c(second))], 1))


class Gated(nn.Module):
    """Squeeze and excitation, and a gated linear unit."""

    def __init__(self):
        super().__init__()
        self.a, self.squeeze, self.excite = _conv(3, 16), nn.Conv2d(16, 6, 1), nn.Conv2d(6, 16, 1)
        self.b, self.head = nn.Conv2d(16, 20, 3, padding=1), nn.Conv2d(10, 4, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.glu(self.b(x), dim=1))


class Shared(nn.Module):
    """One head called on two scales, as in RetinaNet; two names for one layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = _conv(3, 12), _conv(12, 12)
        self.tower = nn.Sequential(_conv(12, 10), nn.ReLU(), _conv(10, 10))
        self.alias = self.tower
        self.head = nn.Conv2d(10, 4, 1)

    def forward(self, x):
        large = F.relu(self.a(x))
        small = F.relu(self.b(F.max_pool2d(large, 2)))
        return self.head(F.relu(self.tower(large))), self.head(F.relu(self.alias(small)))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = _conv(3, 12)
        self.up, self.norm = nn.ConvTranspose2d(12, 16, 2, stride=2), nn.BatchNorm2d(16)
        self.grouped = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.up(F.relu(self.a(x)))))
        return self.head(F.relu(self.grouped(x)))


class Flattened(nn.Module):
    """Convolution, flatten, linear: each channel is many inputs (a box head)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = _conv(3, 12), nn.Conv2d(12, 7, 3)
        self.fc, self.out = nn.Linear(7 * 4 * 4, 20), nn.Linear(20, 3)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(F.relu(self.b(F.relu(self.a(x)))), 4)
        return self.out(F.relu(self.fc(x.flatten(1))))


class Attention(nn.Module):
    """Tokens with self-attention of a fixed scale, then a two-layer perceptron."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 24, 4, stride=4)
        self.qkv, self.project = nn.Linear(24, 3 * 24), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.project(((q @ k.transpose(-2, -1)) * 0.4).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class WithoutRule(nn.Module):
    """An operation over channels that no rule knows, every second channel, and a size given to an operator."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = _conv(3, 12), _conv(12, 10), _conv(10, 9), _conv(9, 8)
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = F.relu(self.a(x)).index_fill(3, torch.tensor([0]), 0.0)
        x = F.relu(self.c(F.relu(self.b(x))))
        x = torch.ops.aten.view(x, [x.shape[0], 9, *x.shape[2:]])
        return self.head(F.relu(self.d(x))[:, ::2])


class Chain(nn.Module):
    """1 x 1 convolutions, so that what an emptied channel emits is the same at every position."""

    def __init__(self, normed: bool, bias: bool = True):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 5, 1, bias=bias)
        self.after = nn.BatchNorm2d(5) if normed else nn.Identity()

    def forward(self, x):
        return self.after(self.b(torch.nn.functional.silu(self.norm(self.a(x)))))


class OneLayer(nn.Module):
    """A layer whose channels are chosen by hand, a norm, a classifier."""

    def __init__(self, kernels: list[list[float]]):
        super().__init__()
        self.layer = nn.Conv2d(3, len(kernels), 1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(len(kernels)), nn.Conv2d(len(kernels), 2, 1)
        self.layer.weight.data = torch.tensor(kernels)[:, :, None, None]

    def forward(self, x):
        return self.head(self.norm(self.layer(x)).relu())


def mean_square(model: nn.Module, batch) -> torch.Tensor:
    """A loss of any network: the sum of the mean squares of its outputs."""
    return sum(y.square().mean() for _, y in tensors(model(batch)))


NETWORKS = [Residual, Dense, Grouped, Depthwise, Shuffled, Split, Gated, Shared, Transposed, Flattened, Attention,
            WithoutRule]  # fmt: skip


class Magnifier(nn.Module):
    """A network whose outputs change much with rounding errors, as deformable convolutions with large offsets do."""

    def __init__(self, factor: float):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 96, 3), nn.Conv2d(96, 40, 3)
        self.last, self.factor = nn.Conv2d(40, 5, 1), factor

    def forward(self, x):
        return self.last((self.factor * self.second(self.first(x).relu())).sin())


class TwoOutputs(nn.Module):
    """Returns one output that magnifies rounding errors, and one that does not."""

    def __init__(self):
        super().__init__()
        self.magnified, self.plain = Magnifier(1e4), nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 3))

    def forward(self, x):
        return {"magnified": self.magnified(x), "plain": self.plain(x)}
