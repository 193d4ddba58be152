"""Plain torch networks of the papers. Each records how it was built, so that `fg.load` can build it again."""

from filigree.models.gpt import gpt
from filigree.models.language import language_model
from filigree.models.networks import (
    BasicBlock,
    alexnet_cifar,
    build,
    builder,
    caffenet,
    cnn_cifar,
    lenet5,
    lenet_300_100,
    lenet_caffe,
    made_by,
    mlp,
    resnet,
    vgg16_cifar,
)

__all__ = [
    "BasicBlock",
    "alexnet_cifar",
    "build",
    "builder",
    "caffenet",
    "cnn_cifar",
    "gpt",
    "language_model",
    "lenet5",
    "lenet_300_100",
    "lenet_caffe",
    "made_by",
    "mlp",
    "resnet",
    "vgg16_cifar",
]
