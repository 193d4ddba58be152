"""The loss without logits against torch's with them: values, gradients, types, what is ignored."""

import weakref

import pytest
import torch
from torch.nn import functional as F

import filigree as fg
from filigree.ops.linear_cross_entropy import TiedRows, linear_cross_entropy


def example(dtype=torch.float64, samples=(3, 7), features=5, classes=11):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*samples, features, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(classes, features, generator=generator).to(dtype).requires_grad_()
    return x, weight, torch.randint(classes, samples, generator=generator)


@pytest.mark.parametrize("chunk", [None, 1, 4, 21, 100])
def test_equals_cross_entropy_of_all_logits(chunk):
    x, weight, targets = example()
    targets[0, :3] = -100
    loss = linear_cross_entropy(x, weight, targets, chunk=chunk)
    expected = F.cross_entropy((x @ weight.t()).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(3 * loss, [x, weight]), torch.autograd.grad(3 * expected, [x, weight])
    )


def test_float64_is_computed_to_its_precision():
    x, weight, targets = example()  # of 21 samples: 1 / 21 is no float32
    loss = linear_cross_entropy(x, weight, targets)
    expected = F.cross_entropy((x @ weight.t()).flatten(0, 1), targets.flatten())
    for ours, theirs in zip(
        (loss, *torch.autograd.grad(loss, [x, weight])), (expected, *torch.autograd.grad(expected, [x, weight])),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_gradients_against_finite_differences():
    x, weight, targets = example(samples=(4,))
    assert torch.autograd.gradcheck(lambda x, w: linear_cross_entropy(x, w, targets, chunk=3), (x, weight))


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_one_side_alone(frozen):
    x, weight, targets = example()
    (x if frozen == "x" else weight).requires_grad_(False)
    other = weight if frozen == "x" else x
    loss = linear_cross_entropy(x, weight, targets, chunk=2)
    expected = F.cross_entropy((x @ weight.t()).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(torch.autograd.grad(loss, other), torch.autograd.grad(expected, other))


def test_in_16_bits_and_under_autocast():
    x, weight, targets = example(torch.float32)
    exact = linear_cross_entropy(x, weight, targets)
    gradients = torch.autograd.grad(exact, [x, weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    short = linear_cross_entropy(x.bfloat16(), weight.bfloat16(), targets)
    for rounded in (loss, short):
        assert rounded.dtype is torch.float32
        torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)
        for ours, theirs in zip(torch.autograd.grad(rounded, [x, weight]), gradients, strict=True):
            assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_small_gradients_survive_autocast_in_float16():
    """Those of classes that are no target are a probability divided by the number of samples: below float16's least."""
    torch.manual_seed(0)
    x, weight, targets = torch.rand(1000, 2) + 1, torch.randn(3000, 2) / 10, torch.zeros(1000, dtype=torch.int64)

    def gradients(autocast):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            loss = linear_cross_entropy(*leaves, targets)
        return torch.autograd.grad(loss * 2.0**16, leaves)

    for low, exact in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(low, exact, rtol=0.02, atol=0)


def test_never_holds_all_logits():
    """Of what operations make, the largest are a chunk's logits, once a chunk, and the weight's gradient, as it is kept
    for another backward pass and as it is given."""
    x, weight, targets = example(torch.float32, samples=(64,), features=4, classes=1000)
    storages = {}

    class Storages(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for each in result if isinstance(result, tuple) else [result]:
                if isinstance(each, torch.Tensor):
                    storages[each.untyped_storage().data_ptr()] = each  # which keeps another from taking the memory
            return result

    with Storages():
        _, gradient = torch.autograd.grad(linear_cross_entropy(x, weight, targets, chunk=8), [x, weight])
    storages.pop(weight.untyped_storage().data_ptr(), None)
    sizes = sorted((each.untyped_storage().nbytes() // 4 for each in storages.values()), reverse=True)
    assert sizes[:10] == [8 * 1000] * 8 + [4 * 1000] * 2
    assert max(sizes[10:]) < 4 * 1000
    assert gradient.untyped_storage().data_ptr() in storages  # not a copy


def test_what_is_refused():
    x, weight, targets = example()
    with pytest.raises(ValueError, match=r"targets \(...\). Got \(3, 7, 5\), \(11, 5\) and \(7, 3\)"):
        linear_cross_entropy(x, weight, targets.t())
    with pytest.raises(ValueError, match=r"chunk must be at least 1\. Got 0"):
        linear_cross_entropy(x, weight, targets, chunk=0)
    (gradient,) = torch.autograd.grad(linear_cross_entropy(x, weight, targets), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("options", [{}, {"tied": False}], ids=str)
def test_the_loss_of_a_decoder(options):
    torch.manual_seed(0)
    model = fg.models.gpt(30, 8, 16, 1, 2, **options).double()
    x = torch.randint(30, (3, 8))
    y = (x + 1) % 30
    gradients = []
    for loss in (model.loss(x, y, chunk=5), F.cross_entropy(model(x).flatten(0, 1), y.flatten())):
        model.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("change", ["pruned", "bias", "hook", "pre-hook", "subclass", "forward"])
def test_a_head_that_does_more_than_a_product_computes_all_logits(change):
    torch.manual_seed(0)
    model, x = fg.models.gpt(50, 16, width=32, blocks=2, heads=2, tied=False), torch.randint(50, (4, 16))
    if change == "pruned":
        fg.compress_(model, fg.MagnitudePruning(keep=0.5), x, progress=False)
    elif change == "bias":
        model.head.bias = torch.nn.Parameter(torch.randn(50))
    elif change == "hook":
        model.head.register_forward_hook(lambda head, inputs, logits: 2 * logits)
    elif change == "pre-hook":
        model.head.register_forward_pre_hook(lambda head, inputs: (2 * inputs[0],))
    elif change == "subclass":
        fg.convert_(model, fg.OnlinePaths(40), where="head")
    else:
        model.head.forward = lambda hidden: 2 * F.linear(hidden, model.head.weight)
    losses = []
    for loss_of in (model.loss, lambda x, y: _all_logits(model, x, y)):
        torch.manual_seed(1)
        losses.append(loss_of(x, x))
    torch.testing.assert_close(*losses)


def test_both_gradients_of_a_tied_weight_are_one():
    """In every way in which a backward pass may ask for them; the graph goes when nothing holds it any more."""
    torch.manual_seed(0)
    model = fg.models.gpt(30, 8, 16, 2, 2).double()
    x = torch.randint(30, (3, 8))
    y, parameters, weight = (x + 1) % 30, list(model.parameters()), model.tokens.weight
    gradients = torch.autograd.grad

    def expected(scale=1.0):
        return gradients(scale * _all_logits(model, x, y), parameters)

    loss = model.loss(x, y, chunk=5)
    for scale in (1, 2):  # the same graph again
        torch.testing.assert_close(gradients(scale * loss, parameters, retain_graph=True), expected(scale))
    torch.testing.assert_close(gradients(loss, weight, retain_graph=True)[0], expected()[0])
    torch.testing.assert_close(gradients(loss, parameters[5], retain_graph=True)[0], expected()[5])
    scales = torch.tensor([1.0, 2.0]).double()
    batched = gradients(loss, parameters, scales, is_grads_batched=True)
    torch.testing.assert_close(batched, tuple(torch.stack([each, 2 * each]) for each in expected()))
    both = gradients(model.loss(x, y) + 3 * model.loss(x, y, chunk=7), parameters)
    torch.testing.assert_close(both, expected(4))
    node = weakref.ref((loss := model.loss(x, y)).grad_fn)
    loss.backward()
    torch.testing.assert_close(weight.grad, expected()[0])
    del loss
    assert node() is None
    whole = model.blocks[1].forward
    model.blocks[1].forward = lambda hidden, *others: whole(hidden.detach(), *others)  # the rows have no part in it
    torch.testing.assert_close(gradients(model.loss(x, y), weight)[0], gradients(_all_logits(model, x, y), weight)[0])


def test_a_gradient_that_is_changed_in_place_is_not_the_next_one():
    x, weight, targets = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True), torch.arange(5)
    loss = linear_cross_entropy(x, weight, targets)
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.mul_(2)
    torch.testing.assert_close(list(torch.autograd.grad(loss, (x, weight))), kept)


def test_of_two_heads_both_give_their_gradients():
    weight, tokens, targets = torch.randn(9, 4, requires_grad=True), torch.tensor([1, 1, 8]), torch.tensor([2, 1, 0])
    tied = TiedRows(weight, tokens)
    rows = F.embedding(tokens, weight)
    ours = linear_cross_entropy(tied.rows, weight, targets, tied=tied)
    ours = ours + linear_cross_entropy(2 * tied.rows, weight, targets, tied=tied)
    theirs = F.cross_entropy(rows @ weight.t(), targets) + F.cross_entropy(2 * rows @ weight.t(), targets)
    torch.testing.assert_close(torch.autograd.grad(ours, weight), torch.autograd.grad(theirs, weight))


@pytest.mark.parametrize("option", [{"padding_idx": 3}, {"max_norm": 0.01}, {"scale_grad_by_freq": True}], ids=str)
def test_an_embedding_that_does_more_than_read_rows_does_it(option):
    model = fg.models.gpt(tokens=11, context=8, width=8, blocks=1, heads=2)
    ((name, value),) = option.items()
    setattr(model.tokens, name, value)
    x = torch.tensor([[3, 3, 1, 4]])
    torch.testing.assert_close(
        torch.autograd.grad(model.loss(x, x), model.tokens.weight),
        torch.autograd.grad(_all_logits(model, x, x), model.tokens.weight),
    )


def _all_logits(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())
