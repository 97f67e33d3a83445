"""The embedded world's judge: a small convolutional network with one head per category and an "other" class in each.

It names what a picture shows, so that an erasure can be measured. It was trained on drawings and on
their round trips through the embedded autoencoder, never on anything that the diffusion model generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from . import world

CLASSES = {category: (*concepts, world.OTHER) for category, concepts in world.CATEGORIES.items()}


class JudgeNetwork(nn.Module):
    """Pictures (B, 3, 32, 32) in [-1, 1] -> category -> logits (B, classes of the category)."""

    def __init__(self, width: int = 32, classes: Mapping[str, tuple[str, ...]] = CLASSES):
        super().__init__()
        self.classes = classes

        def stage(inward: int, outward: int) -> list[nn.Module]:
            return [nn.Conv2d(inward, outward, 3, padding=1), nn.BatchNorm2d(outward), nn.ReLU()]

        self.body = nn.Sequential(
            *stage(3, width), *stage(width, width), nn.MaxPool2d(2),
            *stage(width, 2 * width), *stage(2 * width, 2 * width), nn.MaxPool2d(2),
            *stage(2 * width, 3 * width), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(3 * width * 16, 128), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({category: nn.Linear(128, len(names)) for category, names in classes.items()})

    def features(self, pictures: Tensor) -> Tensor:
        """The 128 numbers that the heads see: (B, 128)."""
        return self.body(pictures)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.features(pictures)
        return {category: head(features) for category, head in self.heads.items()}

    @torch.no_grad()
    def name(self, pictures: Tensor) -> list[dict[str, str]]:
        """What each picture shows: category -> concept or "other"."""
        chosen = {category: logits.argmax(1).tolist() for category, logits in self(pictures).items()}
        return [
            {category: self.classes[category][rows[i]] for category, rows in chosen.items()}
            for i in range(len(pictures))
        ]


def load_judge(path: Path) -> JudgeNetwork:
    """The judge from a safetensors file, float32, in eval mode."""
    judge = JudgeNetwork()
    judge.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()})
    return judge.eval()
