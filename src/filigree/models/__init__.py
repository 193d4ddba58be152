"""Plain torch networks of the papers. Each remembers how it was made, so that `fg.load` can rebuild it."""

from filigree.models.networks import alexnet_cifar, build, caffenet, lenet5, lenet_300_100, lenet_caffe, mlp, resnet

__all__ = ["alexnet_cifar", "build", "caffenet", "lenet5", "lenet_300_100", "lenet_caffe", "mlp", "resnet"]
