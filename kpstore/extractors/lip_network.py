"""The lip-reading encoder: a 2-D ResNet18 behind a front end with a kernel of five frames."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages; those of the last stage are the feature."""


class LipNetwork(nn.Module):
    """The encoder of IIANet and of mpc001's lip reading, with their 137 parameter names.

    The front end halves height and width twice. The trunk has no stem of its own and two blocks per
    stage, and averages over what is left of each frame. There is no stride and no padding in time:
    callers add the two frames before and after, or zeros at the ends of a video.
    """

    def __init__(self) -> None:
        super().__init__()
        first = WIDTHS[0]
        self.frontend3D = nn.Sequential(
            nn.Conv3d(1, first, (5, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(first),
            nn.PReLU(first),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        self.trunk = Trunk()

    def forward(self, crops: Tensor) -> Tensor:
        """Return (pieces, T, 512) for scaled crops (pieces, T + 4, height, width)."""
        maps = self.frontend3D(crops.unsqueeze(1))
        rows = self.trunk(maps.transpose(1, 2).flatten(0, 1))
        return cast("Tensor", rows).view(len(crops), -1, WIDTHS[-1])


class Trunk(nn.Module):
    """Four stages of two blocks; (frames, 64, h, w) to (frames, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], stride=2)
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], stride=2)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the mean of the last stage over height and width."""
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
        return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def _stage(width_in: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(width_in, width, stride=stride), ResidualBlock(width, width, stride=1)
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, a 1 x 1 convolution where the shape changes."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.PReLU(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Return (frames, width, h / stride, w / stride)."""
        past = maps if self.downsample is None else self.downsample(maps)
        inner = self.relu1(self.bn1(self.conv1(maps)))
        return cast("Tensor", self.relu2(self.bn2(self.conv2(inner)) + past))
