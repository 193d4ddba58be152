"""32 points in two classes, as Lightning and transformers read them."""

import torch
from torch.utils.data import Dataset


class Points(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(32, 6, generator=generator)
        self.y = (self.x[:, 0] > 0).long()

    def __len__(self):
        return 32

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i]}
