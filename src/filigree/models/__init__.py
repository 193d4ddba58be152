"""Plain torch networks of the papers. Each remembers how it was made, so that `fg.load` can rebuild it."""

from filigree.models.attention import translator
from filigree.models.captioner import captioner
from filigree.models.language import language_model
from filigree.models.networks import (
    BasicBlock,
    alexnet_cifar,
    build,
    caffenet,
    cnn_cifar,
    lenet5,
    lenet_300_100,
    lenet_caffe,
    mlp,
    resnet,
    vgg16_cifar,
)
from filigree.models.ntm import ntm
from filigree.models.sequence import character_encoder, sequence_classifier

__all__ = [
    "BasicBlock",
    "alexnet_cifar",
    "build",
    "caffenet",
    "captioner",
    "character_encoder",
    "cnn_cifar",
    "language_model",
    "lenet5",
    "lenet_300_100",
    "lenet_caffe",
    "mlp",
    "ntm",
    "resnet",
    "sequence_classifier",
    "translator",
    "vgg16_cifar",
]
