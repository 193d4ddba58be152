"""The claims of the documents that matter, as the report opens with them."""

from __future__ import annotations

from typing import Any

# methods are those of `filigree compare`, entries those of documents.yaml
HEADLINES: list[dict[str, Any]] = [
    {
        "title": "Sparse networks that evolve are as accurate as dense ones, in a fraction of the time",
        "text": (
            "Chouliaras 2021, after SET. It holds: as accurate as dense with about a twentieth of the weights, in a "
            "tenth to a half of the training time. That EXD is the best of the four is not seen: they are alike."
        ),
        "methods": ["SET", "LDV", "OSV", "EXD"],
        "cost": "train_seconds",
        "entries": [
            ("Chouliaras 2021", "section 6.1"), ("Chouliaras 2021", "Fig. 5.9"), ("Chouliaras 2021", "Fig. 5.18"),
        ],
    },
    {
        "title": "Backward passes by the top k are faster, and train better",
        "text": (
            "Srivastava 2022. Faster on wide layers; not better on images: the sensitivities that are kept are "
            "one-sided, so activations grow, most of all under Adam. SGD with momentum trains them."
        ),
        "methods": ["topk", "partial", "complete", "EXD-topk"],
        "cost": "train_seconds",
        "entries": [
            ("Srivastava 2022", "Table 9.1"), ("Srivastava 2022", "chapter 10"), ("Srivastava 2022", "Table 9.2"),
        ],
    },
    {
        "title": "A network sampled to a few integers keeps nearly all of its accuracy",
        "text": "Keller et al. It holds with calibration: 97% of the accuracy at 12% of the weights.",
        "methods": ["quantised", "EXD-quantised"],
        "cost": "bytes_disk",
        "entries": [
            ("Keller et al.", "slide 'Test accuracy for two layer ReLU'"),
            ("Keller et al.", "slide 'Application to convolutional layers'"),
        ],
    },
    {
        "title": "Sub-clustering finds how many units can go, and a few epochs make up for them",
        "text": (
            "John 2019. Units go at little loss once the rest is refitted by least squares. That the printed rule "
            "decides how many is not seen: it is not monotone in p, and splits the clusters that should stay whole."
        ),
        "methods": ["sub-clustered", "sub-clustered-quantised"],
        "cost": "bytes_disk",
        "entries": [("John 2019", "Table 5.1"), ("John 2019", "Table 5.8"), ("John 2019", "Fig. 4.3")],
    },
    {
        "title": "ACDC and Fastfood replace large layers; noise trains units that saturate",
        "text": (
            "Moczulski 2019. Structured layers take a hundredth of the bytes and are fast from 1024 units on, at a "
            "loss of one to several points here. Noise: hard activations help on language; noise slows MNIST down."
        ),
        "methods": ["ACDC", "Fastfood"],
        "cost": "bytes_disk",
        "entries": [
            ("Moczulski 2019", "Fig. 3.3"), ("Moczulski 2019", "Table 3.1"), ("Moczulski 2019", "Fig. 4.5"),
            ("Moczulski 2019", "Table 4.2"),
        ],
    },
]  # fmt: skip
