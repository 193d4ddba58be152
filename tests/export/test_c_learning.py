"""Programs in C that learn with convolutions, in pieces, in little memory: against torch."""

import functools
import shutil
import subprocess
import zlib

import numpy as np
import pytest
import torch
from test_c import SANITIZE, ZETA, check_sorted, close, sparse_layer, steps_in_c, steps_in_torch
from test_c_properties import WARNINGS, needs_compiler
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.dynamics.rewire import gradient_growth, survivors
from filigree.export.c.compiler import compiler
from filigree.export.c.export_c import export_c
from filigree.export.c.training_trial import keep_share

pytestmark = [needs_compiler, pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")]


def learner(kind):
    """A network with each kind of layer and window, and its input's shape."""
    if kind == "labels":
        model = nn.Sequential(
            nn.Conv2d(2, 4, (2, 3), padding="same"), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=2, bias=False), nn.Tanh(),
            nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.Linear(144, 8), nn.LeakyReLU(0.1), nn.Linear(8, 4),
        )  # fmt: skip
        return model, (2, 11, 8)
    model = nn.Sequential(
        nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.Conv2d(1, 3, 2, padding=2, dilation=2), nn.Sigmoid(),
        nn.MaxPool2d(2, ceil_mode=True), nn.Hardtanh(), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(),
        sparse_layer(5, 6, *((i % 5, i * 5 % 6) for i in range(15))), nn.Tanh(), nn.Linear(5, 4),
    )  # fmt: skip
    return model, (1, 7, 9)


def check_in_cpp(path):
    """The program is C++17 too, without warnings."""
    if shutil.which("g++"):
        subprocess.run(["g++", "-x", "c++", "-std=c++17", *WARNINGS, "-fsyntax-only", path], check=True)


@pytest.mark.parametrize("kind", ["labels", "targets"])
def test_convolutions_learn_as_in_torch(tmp_path, kind):
    torch.manual_seed(0)
    (model, shape), mse = learner(kind), kind == "targets"
    x = torch.randn(20, 16, *shape)
    x[:, :, :, :4, :4] = 1.0  # windows of equal numbers
    options = {"loss": "mse", "momentum": 0.0} if mse else {"weight_decay": 0.01, "nesterov": True}
    path = tmp_path / "m.c"
    report = export_c(model, path, x[0], training=True, batch=16, **options)
    assert {layer.what.split()[0] for layer in report.layers} == {
        "convolution", "max", "linear", "padded" if kind == "labels" else "average"
    }  # fmt: skip
    check_in_cpp(path)
    rate = 0.5 if mse else 0.02
    batches = [(x[i], torch.randn(16, 4) if mse else torch.randint(4, (16,))) for i in range(10)] * 2
    batches[3] = tuple(part[:5] for part in batches[3])
    losses, weights, *_ = steps_in_c(compiler(), path, batches, rate, mse=mse, momentum=not mse, sparse=mse)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    options.pop("loss", None)
    optimizer = torch.optim.SGD(model.parameters(), rate, **{"momentum": 0.9, **options})
    close(losses, torch.from_numpy(steps_in_torch(model, batches, optimizer, mse)))
    ours = [weights[name] for name in weights.dtype.names if not name.endswith(("columns", "starts"))]
    for numbers, parameter, before in zip(ours, model.parameters(), start, strict=True):
        close(numbers, parameter)
        assert (parameter - before).abs().max() > 0.005
    assert report.ram_bytes > 4 * 16 * np.prod(shape)  # activations of a batch


POWER_LOSS = r"""
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "m.h"

static uint8_t flash[2 * M_SLOT], before[2 * M_SLOT], memory[3][sizeof m_weights + sizeof m_velocity];
static size_t power; /* how many bytes can still be written or erased */
static jmp_buf off;

static int reads(void *context, size_t offset, void *bytes, size_t size)
{
    (void)context;
    if (offset + size > sizeof flash) { exit(3); }
    memcpy(bytes, flash + offset, size);
    return 0;
}

static int changes(size_t offset, const uint8_t *bytes, size_t size)
{
    if (offset + size > sizeof flash) { exit(4); }
    for (size_t i = 0; i < size; ++i) {
        if (power-- == 0) { longjmp(off, 1); }
        if (bytes != NULL && flash[offset + i] != 0xff) { exit(5); } /* written twice */
        flash[offset + i] = bytes != NULL ? bytes[i] : 0xff;
    }
    return 0;
}

static int erases(void *context, size_t offset, size_t size)
{
    if (offset % M_BLOCK != 0 || size % M_BLOCK != 0) { exit(6); }
    (void)context;
    return changes(offset, NULL, size);
}

static int writes(void *context, size_t offset, const void *bytes, size_t size)
{
    (void)context;
    return changes(offset, (const uint8_t *)bytes, size);
}

static void look(uint8_t *to)
{
    memcpy(to, &m_weights, sizeof m_weights);
    memcpy(to + sizeof m_weights, &m_velocity, sizeof m_velocity);
}

static int is(int state)
{
    uint8_t now[sizeof *memory];
    look(now);
    return memcmp(now, memory[state], sizeof now) == 0;
}

static void put(int state)
{
    memcpy(&m_weights, memory[state], sizeof m_weights);
    memcpy(&m_velocity, memory[state] + sizeof m_weights, sizeof m_velocity);
}

int main(void)
{
    static const m_storage storage = {reads, erases, writes, NULL};
    static float x[2 * M_INPUTS];
    static int labels[2] = {1, 0};
    static size_t old, all, end;
    static unsigned counts[2];

    memset(flash, 0x5a, sizeof flash);
    look(memory[0]);
    if (m_load(&storage) != -1 || !is(0)) { return 10; }
    for (int state = 0; state < 3; ++state) {
        for (size_t i = 0; i < 2 * M_INPUTS; ++i) { x[i] = (float)((7 * i + (size_t)state) % 5) - 2.0f; }
        m_train_step(x, labels, 2, 0.1f);
        look(memory[state]);
        if (state == 2) { memcpy(before, flash, sizeof flash); }
        power = SIZE_MAX;
        if (m_save(&storage) != 0) { return 11; }
        all = SIZE_MAX - power;
    }
    for (size_t lost = 0; lost <= all; ++lost) {
        memcpy(flash, before, sizeof flash);
        put(2);
        power = lost;
        if (setjmp(off) == 0 && m_save(&storage) != 0) { return 12; }
        memset(&m_weights, 0, sizeof m_weights);
        if (m_load(&storage) != 0 || !(is(1) || is(2))) { return 13; }
        if (old > 0 && is(1)) { return 14; } /* it was whole once */
        old += (size_t)is(2);
        ++counts[is(2)];
        put(0); /* and saving goes on */
        power = SIZE_MAX;
        if (m_save(&storage) != 0) { return 15; }
        put(1);
        if (m_load(&storage) != 0 || !is(0)) { return 16; }
    }
    memcpy(flash, before, sizeof flash);
    put(2);
    if (m_save(&storage) != 0) { return 17; }
    for (end = 0; end < 16 + sizeof *memory; ++end) { /* a byte of the newest is another one */
        flash[end] ^= 0x10;
        if (m_load(&storage) != 0 || !is(1)) { return 18; }
        flash[end] ^= 0x10;
    }
    flash[M_SLOT + 20] ^= 1; /* the older one, too */
    if (m_load(&storage) != 0 || !is(2)) { return 19; }
    flash[20] ^= 1;
    if (m_load(&storage) != -1) { return 20; }
    fwrite(flash, M_SLOT, 1, stdout);
    fprintf(stderr, "%u %u\n", counts[0], counts[1]);
    return 0;
}
"""


def test_a_saved_state_survives_power_that_fails_at_any_byte(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), sparse_layer(3, 8, (0, 1), (1, 7), (2, 3)))
    export_c(model, tmp_path / "m.c", torch.zeros(1, 1, 4, 4), training=True, batch=2, checkpoint=True)
    (tmp_path / "main.c").write_text(POWER_LOSS)
    check_in_cpp(tmp_path / "m.c")
    build = [*compiler(), "-std=c99", *WARNINGS, *SANITIZE, "-DM_BLOCK=48", "m.c", "main.c", "-o", "main", "-lm"]
    subprocess.run(build, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True)
    assert done.returncode == 0, done
    kept, saved = map(int, done.stderr.split())
    assert kept > 200
    assert saved == 1  # until the last byte is written the older state is the newest whole one
    slot = bytearray(done.stdout)
    slot[20] ^= 1
    stamp, numbers = np.frombuffer(slot[:16], np.uint32), 2 * (18 + 2 + 3 + 3) * 4 + 8
    assert zlib.crc32(slot[:12] + slot[16 : 16 + numbers]) == stamp[3]


@pytest.mark.parametrize("kind", ["top-k", "adaptive"])
def test_a_part_of_the_gradients_counts_as_in_torch(tmp_path, kind):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 20), nn.ReLU(), nn.Linear(20, 16),
        nn.Tanh(), nn.Linear(16, 4),
    )  # fmt: skip
    model[0].requires_grad_(False)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.4)), where=["4"])
    with torch.no_grad():  # these two units have equal gradients: the first one counts
        for parameter in (model[6].weight, model[6].bias, model[8].weight.t()):
            parameter[1].copy_(parameter[0])
    options = {"momentum": 0.0} if kind == "top-k" else {"adaptive": (0.1, 0.6)}
    if kind == "top-k":
        fg.convert_(model, fg.Asymmetric.topk(3), where=["4", "6", "8"])
    export_c(model, tmp_path / "m.c", torch.zeros(1, 1, 8, 8), training=True, batch=16, **options)
    x = torch.randn(20, 16, 1, 8, 8)
    batches = [(part, torch.randint(4, (16,))) for part in x]
    losses, weights, *_ = steps_in_c(compiler(), tmp_path / "m.c", batches, 0.1, momentum=kind != "top-k")
    start = [parameter.detach().clone() for parameter in model.parameters()]
    if kind == "adaptive":
        for name in ("4", "6", "8"):
            keep_share(model.get_submodule(name), 0.1, 0.6)
    momentum = options.get("momentum", 0.9)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=momentum)
    close(losses, torch.from_numpy(steps_in_torch(model, batches, optimizer)))
    ours = [weights[name] for name in weights.dtype.names if name.endswith(("values", "bias"))]
    for numbers, parameter in zip(ours, list(model.parameters())[2:], strict=True):
        close(numbers, parameter)
    assert torch.equal(model[0].weight, start[0])
    moved = [(parameter - before).abs().max() for parameter, before in zip(model.parameters(), start, strict=True)]
    assert min(moved[2:]) > 0.005


def test_connections_grow_where_gradients_are_largest(tmp_path):
    torch.manual_seed(0)
    model = fg.models.mlp([12, 40, 30, 4])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1", "fc2"])
    export_c(model, tmp_path / "m.c", training=True, batch=16, grow="gradient")
    batches = [(torch.randn(16, 12), torch.randint(4, (16,))) for _ in range(6)]
    check_in_cpp(tmp_path / "m.c")
    nothing = (torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64))
    call = "NAME_rewire(0.3f, x, y, 16); NAME_rewire(1.5f, x, y, 16); NAME_rewire(0.3f, x, y, 17);"
    run = functools.partial(steps_in_c, compiler(), tmp_path / "m.c", rate=0.1, also=call)
    _, before, _ = run(batches)
    _, after, velocity = run([*batches, nothing], rewire=[6])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    steps_in_torch(model, batches, optimizer)
    seen = {}
    for name in ("fc1", "fc2"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda module, inputs, y, name=name: seen.update({name: [inputs[0].detach(), y]}))
        layer.relu = False  # what comes before the activation is looked at
    x, y = batches[-1]
    loss = F.cross_entropy(model.fc3(F.relu(model.fc2(F.relu(model.fc1(x))))), y)
    deltas = torch.autograd.grad(loss, [made for _, made in seen.values()])
    for (name, rows, columns), delta in zip((("fc1", 40, 12), ("fc2", 30, 40)), deltas, strict=True):
        old, new = check_sorted(before, name, rows, columns), check_sorted(after, name, rows, columns)
        kept = torch.from_numpy(old[survivors(torch.from_numpy(before[f"{name}_values"].copy()), ZETA).numpy()])
        grown = gradient_growth(kept, seen[name][0], delta, len(old) - len(kept))
        assert len(grown) > 20
        assert np.array_equal(new, torch.cat([kept, grown]).sort().values)
        fresh = np.isin(new, grown)
        assert not after[f"{name}_values"][fresh].any()
        assert not velocity[f"{name}_values"][fresh].any()
        assert np.array_equal(after[f"{name}_values"][~fresh], before[f"{name}_values"][np.isin(old, kept)])
    assert np.array_equal(after["fc3_values"], before["fc3_values"])
    assert np.array_equal(after["fc1_bias"], before["fc1_bias"])


def test_weights_in_eight_bits_step_at_random_and_right_on_average(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 40), nn.Tanh(), nn.Linear(40, 4)
    )
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["4"])
    path, rate = tmp_path / "m.c", 0.05
    report = export_c(model, path, torch.zeros(1, 1, 8, 8), training=True, batch=16, weights="int8")
    assert {layer.form for layer in report.layers if layer.bytes} == {"trained, dense, int8", "trained, sparse, int8"}
    check_in_cpp(path)
    teacher = torch.randn(64, 4)
    batches = [(x, (x.flatten(1) @ teacher).argmax(1)) for x in torch.randn(6, 16, 1, 8, 8)]
    run = functools.partial(steps_in_c, compiler(), path)
    losses, after, velocity = run(batches[:1], rate)
    layers = {f"layer_{name}": model.get_submodule(name) for name in ("0", "4", "6")}
    numbers = {name: next(iter(layer.parameters())) for name, layer in layers.items()}
    units = {name: weight.detach().abs().max() / 64 for name, weight in numbers.items()}
    start = {name: (weight.detach() / units[name]).round() for name, weight in numbers.items()}
    with torch.no_grad():
        for name, weight in numbers.items():
            weight.copy_(start[name] * units[name])
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    close(losses, torch.from_numpy(steps_in_torch(model, batches[:1], optimizer)))
    errors = []
    for name, weight in numbers.items():
        close(velocity[f"{name}_values"], weight.grad)
        assert units[name] == after[f"{name}_unit"][0]
        wanted = start[name] - rate / units[name] * weight.grad
        errors.append(after[f"{name}_values"] - wanted.numpy().reshape(-1))
    errors = np.concatenate(errors)
    assert 0.2 < np.abs(errors).max() < 1.001
    assert abs(errors.mean()) < 5 * (errors**2).mean() ** 0.5 / len(errors) ** 0.5  # five standard deviations
    losses, weights, _ = run(batches * 15, 0.05, rewire=[40])
    assert losses[-10:].mean() < 0.7 * losses[:5].mean()
    check_sorted(weights, "layer_4", 40, 72)
    grown = [weights[f"{name}_unit"][0] / units[name].numpy() for name in layers]
    assert max(grown) >= 2  # weights that outgrew their units
    assert all(np.log2(times) % 1 == 0 for times in grown)
    assert np.abs(np.concatenate([weights[f"{name}_values"] for name in layers]).astype(int)).max() <= 127
