"""The transforms of `torch.func` over every layer: as over its dense reference."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap

import filigree as fg
from contract import _float64, convert_or_skip
from filigree.convert import Conversion
from filigree.ops.dropout import dropout

DENSITY = fg.ErdosRenyi(density=0.5)


def made(config, layer, *others):
    """What a method makes of a layer."""
    torch.manual_seed(0)
    model = nn.Sequential(layer(), *others)
    fg.convert_(model, config, where=lambda name, module: True)
    return model[0] if len(model) == 1 else model


def integer(layer, size, relu=False):
    torch.manual_seed(0)
    model = nn.Sequential(layer, *[nn.ReLU()] * relu)
    fg.compress_(model, fg.MonteCarlo(8), torch.randn(6, *size))
    return model[0]


def linear():
    return nn.Linear(7, 5)


def square():
    return nn.Linear(8, 8)


def images():
    return nn.Conv2d(3, 5, 3, stride=2, padding=1)


VECTORS = {
    "SparseLinear": lambda: made(fg.Sparse(DENSITY), linear),
    "SparseLinear, ReLU": lambda: made(fg.Sparse(DENSITY), linear, nn.ReLU())[0],
    "SparseLinear, no bias": lambda: made(fg.Sparse(DENSITY), lambda: nn.Linear(7, 5, bias=False)),
    "SparseLinear, constant fan-in": lambda: made(fg.Sparse(fg.ConstantFanIn(3)), linear),
    "MaskedLinear": lambda: made(fg.Sparse(DENSITY, masked=True), linear),
    "MaskedLinear, ReLU": lambda: made(fg.Sparse(DENSITY, masked=True), linear, nn.ReLU())[0],
    "FeatureMajorLinear": lambda: fg.nn.FeatureMajorLinear.like(linear()),
    "AsymmetricLinear": lambda: made(fg.Asymmetric.topk(5), linear),
    "AsymmetricSparseLinear": lambda: made(fg.Asymmetric.topk(5), lambda: made(fg.Sparse(DENSITY), linear)),
    "LowRankLinear": lambda: made(fg.LowRank(2), linear),
    "ACDCLinear": lambda: made(fg.ACDC(), square),
    "AFDFLinear": lambda: made(fg.AFDF(), square),
    "FastfoodLinear": lambda: made(fg.Fastfood(), linear),
    "CirculantLinear": lambda: made(fg.Circulant(), linear),
    "ToeplitzLinear": lambda: made(fg.Toeplitz(), linear),
    "PHDLinear": lambda: made(fg.PHD(density=0.5), linear),
    "IntegerLinear": lambda: integer(linear(), (7,)),
    "PartitionedConnect": lambda: made(fg.PartitionDropout(3, connect=True), linear).eval(),
    "NoisyHardTanh": lambda: fg.nn.NoisyHardTanh(c=0.0, alpha=1.0, units=7),
    "NoisyHardTanh, NANIL": lambda: fg.nn.NoisyHardTanh("NANIL", units=7).eval(),
}
IMAGES = {
    "SparseConv2d": lambda: made(fg.Sparse(DENSITY), images),
    "SparseConv2d, groups": lambda: made(
        fg.Sparse(DENSITY), lambda: nn.Conv2d(3, 6, 3, groups=3, padding_mode="circular", padding=1)
    ),
    "MaskedConv2d": lambda: made(fg.Sparse(DENSITY, masked=True), images),
    "ChannelMajorConv2d": lambda: fg.nn.ChannelMajorConv2d.like(images()),
    "ChannelMajorConv2d, large": lambda: fg.nn.ChannelMajorConv2d.like(nn.Conv2d(3, 180, 3, stride=3)),
    "ChannelMajorConv2d, a product": lambda: fg.nn.ChannelMajorConv2d.like(nn.Conv2d(3, 1400, 1, stride=5)),
    "ChannelMajorBatchNorm2d": lambda: fg.nn.ChannelMajorBatchNorm2d.like(nn.BatchNorm2d(3)).eval(),
    "AsymmetricConv2d": lambda: made(fg.Asymmetric.topk(6), images),
    "IntegerConv2d": lambda: integer(images(), (3, 5, 6)),
}
CASES = [(name, table[name], sides) for table, sides in ((VECTORS, None), (IMAGES, (3, 5, 4))) for name in table]
cases = pytest.mark.parametrize(("name", "make", "sides"), CASES, ids=lambda v: v if isinstance(v, str) else "")
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.long("the same in the other type"))]
)


def both(make, sides, dtype, batch=3):
    """A layer, its dense reference, and samples for them."""
    layer = _float64(make()) if dtype == torch.float64 else make()
    dense = layer.dense() if has_dense(layer) else None
    torch.manual_seed(1)
    width = getattr(layer, "in_features", 7)
    return layer, dense, torch.randn(batch, *(sides or (width,)), dtype=dtype)


def has_dense(layer):
    return type(layer).dense is not fg.nn.capabilities.Capabilities.dense


def close(value, truth):
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if truth.dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(value, truth, **tolerance)


def scalar(function):
    return lambda x: function(x).tanh().square().sum()


@cases
@dtypes
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own forward mode
def test_transforms_by_the_input(name, make, sides, dtype):
    layer, dense, x = both(make, sides, dtype)
    if dense is None:
        pytest.skip("no dense reference")
    if "Asymmetric" in name:
        layer.eval()
    one, tangent = x[:1], torch.randn_like(x[:1])
    close(vmap(layer)(x[:, None]), vmap(dense)(x[:, None]))
    close(vmap(layer, in_dims=1, out_dims=1)(x[None]), dense(x)[None])
    close(grad(scalar(layer))(x), grad(scalar(dense))(x))
    for value, truth in zip(grad_and_value(scalar(layer))(x), grad_and_value(scalar(dense))(x), strict=True):
        close(value, truth)
    close(vmap(grad(scalar(layer)))(x[:, None]), vmap(grad(scalar(dense)))(x[:, None]))
    y, pull = vjp(layer, x)
    expected, pull_dense = vjp(dense, x)
    dy = torch.randn(2, *y.shape, dtype=dtype)
    close(y, expected)
    close(vmap(pull)(dy)[0], vmap(pull_dense)(dy)[0])
    close(jacrev(layer)(one), jacrev(dense)(one))
    close(jacrev(jacrev(scalar(layer)))(one), jacrev(jacrev(scalar(dense)))(one))
    close(jvp(layer, (one,), (tangent,))[1], jvp(dense, (one,), (tangent,))[1])
    close(jacfwd(layer)(one), jacfwd(dense)(one))
    close(hessian(scalar(layer))(one), hessian(scalar(dense))(one))


@cases
@dtypes
def test_batched_gradients(name, make, sides, dtype):
    layer, dense, x = both(make, sides, dtype)
    if dense is None:
        pytest.skip("no dense reference")
    if "Asymmetric" in name:
        layer.eval()
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(own), dense(other)
    dy = torch.randn(4, *y.shape, dtype=dtype)
    (value,) = torch.autograd.grad(y, own, dy, is_grads_batched=True)
    (truth,) = torch.autograd.grad(expected, other, dy, is_grads_batched=True)
    close(value, truth)
    assert not value.requires_grad
    jacobian = torch.autograd.functional.jacobian
    close(jacobian(layer, x[:1], vectorize=True), jacobian(dense, x[:1], vectorize=True))


@cases
@dtypes
def test_transforms_by_the_parameters(name, make, sides, dtype):
    """Per-sample gradients, and an ensemble's outputs, are those of one after the other."""
    layer, _, x = both(make, sides, dtype)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    if not parameters:
        pytest.skip("nothing to train")

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample[None],)).tanh().square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for number, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).tanh().square().sum().backward()
        for key, parameter in layer.named_parameters():
            close(gradients[key][number], parameter.grad)
    values, whole = grad_and_value(loss)(parameters, x[0])[::-1]
    layer.zero_grad()
    (truth := layer(x[:1]).tanh().square().sum()).backward()
    close(values, truth.detach())
    for key, parameter in layer.named_parameters():
        close(whole[key], parameter.grad)
    ensemble = {key: torch.stack([p, 2 * p, p - 1]) for key, p in parameters.items()}
    outputs = vmap(lambda p, x: functional_call(layer, p, (x,)), in_dims=(0, None))(ensemble, x)
    for number in range(3):
        member = {key: p[number] for key, p in ensemble.items()}
        close(outputs[number], functional_call(layer, member, (x,)).detach())
    if outputs[0].numel() > 500 or any(p.is_complex() for p in parameters.values()):
        return  # slow; torch refuses jacobians by complex numbers
    jacobians = jacrev(lambda p: functional_call(layer, p, (x[:1],)))(parameters)
    for key, parameter in layer.named_parameters():
        y = layer(x[:1])
        rows = [torch.autograd.grad(part, parameter, retain_graph=True)[0] for part in y.flatten()]
        close(jacobians[key].flatten(0, y.dim() - 1), torch.stack(rows))


def examples():
    for kind in Conversion.by_kind().values():
        yield from kind.examples().items()


def network(kind, config):
    torch.manual_seed(0)
    if kind == "recurrent":
        model, x = nn.Sequential(nn.LSTM(6, 4, batch_first=True)), torch.randn(3, 2, 5, 6)
    else:
        model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)), torch.randn(3, 2, 6)
    convert_or_skip(model, config)
    return model, x


def of_sample(model):
    def loss(parameters, sample):
        y = functional_call(model, parameters, (sample,))
        return (y if isinstance(y, torch.Tensor) else y[0]).tanh().square().sum()

    return loss


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own LSTM
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["flat", pytest.param("recurrent", marks=pytest.mark.long("loops"))])
@pytest.mark.parametrize(("label", "config"), [pytest.param(*pair, id=pair[0]) for pair in examples()])
def test_per_sample_gradients_of_every_method(label, config, kind, training):
    """In eval mode as of one sample after the other; in training too, but for random numbers: there they are finite."""
    model, x = network(kind, config)
    model.train(training)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    gradients = vmap(grad(of_sample(model)), in_dims=(None, 0), randomness="same")(parameters, x)
    for number, sample in enumerate(x):
        truth = grad(of_sample(model))(parameters, sample)
        for key, value in gradients.items():
            if training:
                assert value[number].shape == truth[key].shape
                assert bool(value.isfinite().all())
            else:
                close(value[number], truth[key])
    for module in model.modules():
        for value in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            assert not torch._C._functorch.is_functorch_wrapped_tensor(value)
    model(x[0])


RANDOM = {
    "FastDropout": lambda: fg.nn.FastDropout(0.5),
    "GaussianNoise": lambda: fg.nn.GaussianNoise(0.5),
    "StrengthDropout": lambda: fg.nn.StrengthDropout(40, 0.2),
    "NoisyHardTanh": lambda: fg.nn.NoisyHardTanh(),
    "NoisyHardSigmoid": lambda: fg.nn.NoisyHardSigmoid("NAN"),
    "NoisyReLU": lambda: fg.nn.NoisyReLU(),
    "AsymmetricLinear": lambda: made(fg.Asymmetric(forward=fg.RandomK(9)), lambda: nn.Linear(40, 40)),
    "MollifiedBlock": lambda: half_mollified(),
}
SHARED = {
    "PartitionedDropout": lambda: fg.nn.PartitionedDropout(3),
    "PartitionedDropout, elements": lambda: fg.nn.PartitionedDropout(3, "element"),
    "PartitionedConnect": lambda: made(fg.PartitionDropout(3, connect=True), lambda: nn.Linear(40, 40)),
    "PathLinear": lambda: made(fg.OnlinePaths(200), lambda: nn.Linear(40, 40)),
}


def half_mollified():
    block = fg.nn.MollifiedBlock(nn.Linear(40, 40))
    block.p = 0.5
    return block


@pytest.mark.parametrize(
    ("name", "make"), [*RANDOM.items(), *SHARED.items()], ids=lambda v: v if isinstance(v, str) else ""
)
def test_randomness_of_vmap(name, make):
    """Each sample has numbers of its own, or all the same, or it is an error, as the caller says."""
    layer, x = make().train(), 3 * torch.ones(4, 1, 40)
    assert_raises = pytest.raises(RuntimeError, match="random operation while in randomness error mode")
    with assert_raises:
        vmap(layer)(x)
    y = vmap(layer, randomness="same")(x)
    assert bool((y == y[0]).all())
    again = vmap(grad(lambda s: layer(s).sum()), randomness="same")(x)
    assert bool((again == again[0]).all())
    if name in SHARED:
        with pytest.raises(ValueError, match=r"randomness must be 'same'\. Got 'different'"):
            vmap(layer, randomness="different")(x)
    else:
        y = vmap(layer, randomness="different")(x)
        assert not any(torch.equal(y[0], other) for other in y[1:])
    layer(x[0])
    assert torch.equal(vmap(layer.eval())(x), layer(x))


def test_random_sparsification_is_that_of_the_forward_pass():
    layer = made(fg.Asymmetric(forward=fg.RandomK(9)), lambda: nn.Linear(40, 40))
    pushed, y = grad(
        lambda b: (lambda y: (y.sum(), y))(functional_call(layer, {"bias": b}, torch.ones(1, 40))), has_aux=True
    )(layer.bias.detach())
    assert torch.equal(pushed != 0, y[0] != 0)


def test_partitions_take_one_step_whatever_the_transform():
    dropout, x = fg.nn.PartitionedDropout(3), torch.ones(4, 30)
    for step, run in enumerate(
        (lambda f: f(x), lambda f: vmap(f, randomness="same")(x), lambda f: grad(lambda x: f(x).sum())(x)), 1
    ):
        run(dropout)
        assert int(dropout.step) == step


def test_what_cannot_be_transformed_is_refused_in_a_line():
    layer = made(fg.OnlinePaths(20), lambda: nn.Linear(8, 8)).train()
    weights = {"weight": torch.randn(3, 8, 8)}
    with pytest.raises(ValueError, match="sampled paths: all samples of vmap must have the same weights"):
        vmap(lambda w: functional_call(layer, w, torch.ones(1, 8)), randomness="same")(weights)
    layer, one = made(fg.Asymmetric.topk(5), square).train(), torch.ones(1, 8)
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative \(torch.func.jvp, jacfwd, hessian\)\. Use"):
        jvp(layer, (one,), (one,))
    with pytest.raises(RuntimeError, match="differentiate twice"):
        jacrev(jacrev(scalar(layer)))(one)
    feedback = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    fg.convert_(feedback, fg.Asymmetric(feedback=1))
    with pytest.raises(ValueError, match="direct feedback alignment"):
        grad(lambda x: feedback(x).sum())(torch.ones(1, 8))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own LSTM
@pytest.mark.parametrize("kind", ["flat", pytest.param("recurrent", marks=pytest.mark.long("loops"))])
@pytest.mark.parametrize(("label", "config"), [pytest.param(*pair, id=pair[0]) for pair in examples()])
def test_batched_gradients_in_training_are_those_of_one_after_the_other(label, config, kind):
    model, x = network(kind, config)
    leaf = x[0].clone().requires_grad_()
    y = model.train()(leaf)
    y = y if isinstance(y, torch.Tensor) else y[0]
    wanted = [leaf, *(p for p in model.parameters() if p.requires_grad)]
    dy = torch.randn(3, *y.shape)
    options = {"retain_graph": True, "allow_unused": True}
    batched = torch.autograd.grad(y, wanted, dy, is_grads_batched=True, **options)
    for number, one in enumerate(dy):
        for value, truth in zip(batched, torch.autograd.grad(y, wanted, one, **options), strict=True):
            assert (value is None) == (truth is None)
            if truth is not None:
                close(value[number], truth)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_batched_gradients_of_a_chain_drop_what_the_forward_pass_dropped(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), activation(), fg.nn.FastDropout(0.5), nn.Linear(8, 4))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.6)))
    x = torch.randn(5, 6, requires_grad=True)
    y, wanted = model(x), [x, *model.parameters()]
    dy = torch.randn(3, *y.shape)
    batched = torch.autograd.grad(y, wanted, dy, is_grads_batched=True, retain_graph=True)
    for number, one in enumerate(dy):
        for value, truth in zip(batched, torch.autograd.grad(y, wanted, one, retain_graph=True), strict=True):
            close(value[number], truth)


def test_a_seed_of_dropout_holds_under_transforms():
    x = torch.rand(7, 5) + 1

    def seeded(x):
        return dropout(x, 0.5, 3)

    def with_output(x):
        y = seeded(x)
        return y.sum(), y

    assert torch.equal(vmap(seeded)(x), torch.stack([seeded(row) for row in x]))
    for one in (x, x.t(), x[:1].expand(7, 5)):
        pushed, y = grad(with_output, has_aux=True)(one)
        assert torch.equal(y, seeded(one))
        assert torch.equal(pushed, 2.0 * (y != 0))


def test_batched_gradients_can_be_differentiated():
    layer = fg.nn.SparseLinear(6, 5, DENSITY, relu=True, dtype=torch.float64)
    dense, jacobian = layer.dense(), torch.autograd.functional.jacobian
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    (value,), (truth,) = (
        torch.autograd.grad(
            jacobian(lambda x, f=f: f(x).square(), x, create_graph=True, vectorize=True).square().sum(), x
        )
        for f in (layer, dense)
    )
    close(value, truth)


@pytest.mark.parametrize("make", [
    lambda: made(fg.ACDC(), square),
    lambda: made(fg.Sparse(DENSITY), lambda: nn.Conv2d(3, 3, 3, padding=1)),
    lambda: fg.nn.SparseLinear(8, 8, DENSITY),
], ids=["ACDCLinear", "SparseConv2d", "SparseLinear"])  # fmt: skip
def test_second_derivatives_of_a_layer_that_is_called_twice(make):
    """The first call's output is made from the parameters of the second one: each has its own share of the gradient."""
    layer = _float64(make())
    x = torch.randn(1, *((3, 4, 4) if hasattr(layer, "kernel_size") else (8,)), dtype=torch.float64)
    names, values = zip(*layer.named_parameters(), strict=True)
    values = [value.detach().requires_grad_() for value in values]

    def twice(*values):
        parameters = dict(zip(names, values, strict=True))
        return functional_call(layer, parameters, (functional_call(layer, parameters, (x,)),)).sum(-1).tanh()

    first = torch.autograd.grad(twice(*values).sum(), values, create_graph=True)
    for value, truth in zip(first, torch.autograd.grad(twice(*values).sum(), values), strict=True):
        close(value, truth)
    assert torch.autograd.gradgradcheck(twice, values, fast_mode=True)
