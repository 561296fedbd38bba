"""VGG networks with BatchNorm.

Source: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, table 1 (configuration D is VGG16); BatchNorm after every convolution as in Ioffe, Szegedy 2015.
"""

from torch import Tensor, nn

_VGG_SMALL: tuple[int | str, ...] = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
_VGG16: tuple[int | str, ...] = (*_VGG_SMALL, "M")

# Below this size of the input the three linear layers of the paper's head have nothing to look at.
_SMALLEST_IMAGENET_SIZE = 224
_HIDDEN = 4096  # width of the paper's linear layers


class VGGSmall(nn.Module):
    """Thirteen 3x3 convolutions without bias, global average pooling and one linear layer.

    Parameter names: features.N by position in one nn.Sequential (convolution, BatchNorm, ReLU, pooling),
    classifier.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.features = _features(_VGG_SMALL, in_channels, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Shapes: x: (batch, in_channels, height, width), both sides 16 or more; returns (batch, num_classes).
        """
        return self.classifier(self.pool(self.features(x)).flatten(1))


class VGG16BN(nn.Module):
    """VGG16 with BatchNorm; parameter names are those of torchvision's vgg16_bn.

    The head depends on the size of the image:
    1. 224 or more: 7x7 average pooling and the paper's three linear layers with dropout
       (classifier.{0,3,6}).
    2. smaller: global average pooling and one linear layer 512 -> num_classes (classifier), as usual for
       CIFAR; at 32x32 the last feature map is 1x1 and the pooling does nothing. With `hidden`, the paper's
       three linear layers of that width instead.
    """

    def __init__(
        self, num_classes: int = 10, image_size: int = 32, in_channels: int = 3, hidden: int | None = None
    ) -> None:
        super().__init__()
        if image_size < 32:
            raise ValueError(f"image_size is {image_size}; VGG16 halves the image five times and needs 32 or more")
        self.features = _features(_VGG16, in_channels, bias=True)
        side = 7 if image_size >= _SMALLEST_IMAGENET_SIZE else 1
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        width = hidden if hidden is not None or side == 1 else _HIDDEN
        self.classifier: nn.Module = (
            nn.Linear(512, num_classes)
            if width is None
            else nn.Sequential(
                nn.Linear(512 * side * side, width),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(width, width),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(width, num_classes),
            )
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Shapes: x: (batch, in_channels, image_size, image_size); returns (batch, num_classes).
        """
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _features(layout: tuple[int | str, ...], in_channels: int, *, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = in_channels
    for width in layout:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers)


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)


def vgg_small(num_classes: int = 10, in_channels: int = 3) -> VGGSmall:
    """Return VGG-Small: 313.2 M MACs at 32x32, 14.72 M parameters."""
    return VGGSmall(num_classes, in_channels)


def vgg16_bn(num_classes: int = 10, image_size: int = 32, in_channels: int = 3) -> VGG16BN:
    """Return VGG16-BN.

    At 32x32 with 10 classes: 313.2 M MACs, 14.73 M parameters. At 224x224 with 1000 classes: 15.5 G
    MACs, 138.4 M parameters.
    """
    return VGG16BN(num_classes, image_size, in_channels)


def vgg16_bn_linear(num_classes: int = 10, image_size: int = 32, in_channels: int = 3) -> VGG16BN:
    """Return VGG16-BN with the paper's three linear layers at any size: 332.1 M MACs at 32x32, 33.65 M parameters."""
    return VGG16BN(num_classes, image_size, in_channels, _HIDDEN)
