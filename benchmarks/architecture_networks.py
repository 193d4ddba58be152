"""Networks for `test_architectures.py`: small configurations of timm's and transformers' with random weights.

Random weights leave units hardly anything in common, which those of trained networks have, so the inputs are simple
ones: images are mixtures of `PATTERNS` long waves, token sequences follow a chain in which a word has two successors.
Batch norms take their statistics from such images. The networks are judged by other inputs of the same kind.
"trained" ones have learned to tell photographs apart (CIFAR-10), and take such.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import filigree as fg

PATTERNS, WORDS, LENGTH = 3, 24, 12
STREAM = (  # layers that add to a residual stream, or to what is concatenated
    "*o_proj", "*attn.proj", "*fc2", "*output.dense", "*c_proj", "*.o", "*.wo", "*down_proj", "*out_proj", "conv1",
    "*.conv2", "*conv3.conv", "*downsample.*", "stem*", "*conv_stem", "*conv_pwl", "blocks.0.0.conv_pw", "*.conv0",
    "*transition?.conv",
)  # fmt: skip
HALF = dict.fromkeys(STREAM, 1.0) | {"*": 0.5}  # of hidden units and heads


class Case(NamedTuple):
    """How a network is made, and its inputs (so many samples, by seed), a tensor or a mapping."""

    make: Callable[[], nn.Module]
    data: Callable[[int, int], Any]
    fitted: int = 512  # samples
    methods: tuple[str, ...] = ("subset", "magnitude")


def images(samples: int, seed: int, size: int = 64, channels: int = 3) -> Tensor:
    """Mixtures of long waves that are the same in all images."""
    fixed, drawn = (torch.Generator().manual_seed(number) for number in (0, 1 + seed))
    across = torch.linspace(0, 2 * torch.pi, size)
    steps, phases = torch.rand(2, PATTERNS, generator=fixed) / 2, 6 * torch.rand(PATTERNS, generator=fixed)
    waves = (steps[0, :, None, None] * across[:, None] + steps[1, :, None, None] * across + phases[:, None, None]).sin()
    colours = torch.randn(PATTERNS, channels, generator=fixed)
    return torch.einsum("np,pc,phw->nchw", torch.randn(samples, PATTERNS, generator=drawn), colours, waves) / 2


def words(samples: int, seed: int, length: int = LENGTH) -> Tensor:
    """Sequences in which each word is one of the two that may follow the one before."""
    fixed, drawn = (torch.Generator().manual_seed(number) for number in (0, 1 + seed))
    successors = torch.randint(3, WORDS, (WORDS, 2), generator=fixed)
    sequence = [torch.randint(3, WORDS, (samples,), generator=drawn)]
    for _ in range(length - 1):
        sequence.append(successors[sequence[-1], torch.randint(2, (samples,), generator=drawn)])
    return torch.stack(sequence, 1)


def timm(name: str, **options: Any) -> Case:
    """A network of timm's without weights of others, its batch norms calibrated."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = importlib.import_module("timm").create_model(name, num_classes=10, **options)
        if not bool((head := model.get_classifier()).weight.any()):  # mixer's begins at zero: outputs would say nothing
            nn.init.normal_(head.weight, std=0.02)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None  # the mean over all batches
        with torch.no_grad():
            for seed in range(2 if norms else 0):
                model.train()(images(64, 100 + seed))
        return model.eval()

    return Case(make, images, 256, ("subset",))


def photographs(samples: int, seed: int) -> Tensor:
    """Of CIFAR-10, 64 x 64 pixels: of its training images (seed 0), or of its test images."""
    data = fg.data.load("cifar-10", images=True)
    return larger((data.test if seed else data.train).x[:samples])


def larger(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, size=(64, 64), mode="bilinear")


def trained(name: str, steps: int) -> Case:
    """A network of timm's after so many steps of AdamW on batches of 64 photographs, mirrored or not."""

    @functools.cache
    def learned() -> dict[str, Tensor]:
        model, data = timm(name).make().train(), fg.data.load("cifar-10", images=True)
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.momentum = 0.1
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
        for _ in range(steps):
            rows = torch.randint(len(data.train.x), (64,))
            x, y = larger(data.train.x[rows]), data.train.y[rows]
            loss = nn.functional.cross_entropy(model(x.flip(-1) if torch.rand(()) < 0.5 else x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            batches = zip(data.test.x[:2000].split(200), data.test.y[:2000].split(200), strict=True)
            right = torch.cat([model(larger(x)).argmax(1) == y for x, y in batches])
        print(f"  {name}: {right.float().mean():.1%} of {len(right):,} test images after {steps} steps")
        return model.state_dict()

    def make() -> nn.Module:
        model = timm(name).make()
        model.load_state_dict(learned())
        return model.eval()

    return Case(make, photographs, 1000, ("subset",))


def transformers(model: str, config: str, data: Callable[[int, int], Any], **sizes: Any) -> Case:
    def make() -> nn.Module:
        torch.manual_seed(0)
        library = importlib.import_module("transformers")
        return getattr(library, model)(getattr(library, config)(**sizes)).eval()

    return Case(make, data)


def tokens(samples: int, seed: int) -> dict[str, Tensor]:
    return {"input_ids": words(samples, seed)}


def pairs(samples: int, seed: int) -> dict[str, Tensor]:
    return tokens(samples, seed) | {"decoder_input_ids": words(samples, seed + 50, 8)}


def speech(samples: int, seed: int) -> dict[str, Tensor]:
    return {"input_features": images(samples, seed, 32, 1)[:, 0, :8], "decoder_input_ids": words(samples, seed, 8)}


def pixels(samples: int, seed: int) -> dict[str, Tensor]:
    return {"pixel_values": images(samples, seed, 32)}


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
LANGUAGE = {"vocab_size": WORDS, "use_cache": False}
WHISPER = {
    "d_model": 64, "num_mel_bins": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "max_source_positions": 16,
    "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
CASES = {
    "resnet18": timm("resnet18", zero_init_last=False),
    "mobilenetv3": timm("mobilenetv3_small_050"),
    "efficientnet_b0": timm("efficientnet_b0"),
    "mobilenetv3, trained": trained("mobilenetv3_small_050", 3000),
    "efficientnet_b0, trained": trained("efficientnet_b0", 600),
    "regnet": timm("regnetx_002", zero_init_last=False),
    "convnext": timm("convnext_atto", depths=(1, 1, 2, 1), ls_init_value=1.0),
    "densenet": timm("densenet121", block_config=(2, 2, 2, 2)),
    "mixer": timm("mixer_s32_224", img_size=64),
    "vit": timm("vit_tiny_patch16_224", img_size=64, depth=2),
    "swin": timm("swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1, 1, 1)),
    "BERT": transformers("BertForMaskedLM", "BertConfig", tokens, **SIZES, vocab_size=WORDS),
    "GPT-2": transformers("GPT2LMHeadModel", "GPT2Config", tokens, n_embd=64, n_head=4, n_layer=2, n_positions=20,
                          bos_token_id=1, eos_token_id=2, **LANGUAGE),
    "Llama": transformers("LlamaForCausalLM", "LlamaConfig", tokens, **SIZES, num_key_value_heads=2, **LANGUAGE),
    "T5": transformers("T5ForConditionalGeneration", "T5Config", pairs, d_model=64, d_kv=16, d_ff=256, num_layers=2,
                       num_heads=4, feed_forward_proj="gated-gelu", **LANGUAGE),
    "ViT": transformers("ViTForImageClassification", "ViTConfig", pixels, **SIZES, image_size=32, patch_size=8,
                        num_labels=10),
    "Whisper": transformers("WhisperModel", "WhisperConfig", speech, **WHISPER, **LANGUAGE),
}  # fmt: skip
