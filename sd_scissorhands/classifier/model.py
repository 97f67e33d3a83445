"""The embedded classifier's network, registered with transformers so that one loader serves every model."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

MODEL_TYPE = "sd_scissorhands_cnn"


class SmallCNNConfig(PretrainedConfig):
    """Sizes of a `SmallCNN`; the defaults fit scikit-learn's digits, (1, 8, 8) in [0, 1]."""

    model_type = MODEL_TYPE

    num_channels: int = 1
    image_size: int = 8
    width: int = 16  # channels of the first convolution; the second has twice as many
    features: int = 64  # what the head sees

    def __init__(self, num_channels: int = 1, image_size: int = 8, width: int = 16, features: int = 64, **others: Any):
        super().__init__(**others)
        self.num_channels, self.image_size, self.width, self.features = num_channels, image_size, width, features


class SmallCNN(PreTrainedModel):
    """Two 3 x 3 convolutions with ReLU, a 2 x 2 maximum, a linear layer with ReLU, and a linear head.

    No normalisation, so that the loss of one picture depends on that picture alone and every weight is in scope; all
    layers are linear or piecewise linear.
    """

    config_class = SmallCNNConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: SmallCNNConfig):
        super().__init__(config)
        self.conv1 = nn.Conv2d(config.num_channels, config.width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.width, 2 * config.width, 3, padding=1)
        self.hidden = nn.Linear(2 * config.width * (config.image_size // 2) ** 2, config.features)
        self.head = nn.Linear(config.features, int(config.num_labels or 0))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own initial values."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **others: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits (B, labels) of pictures (B, c, h, w), and the cross entropy where labels (B,) are given."""
        x = F.relu(self.conv1(pixel_values))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits = self.head(F.relu(self.hidden(x.flatten(1))))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


AutoConfig.register(MODEL_TYPE, SmallCNNConfig, exist_ok=True)
AutoModelForImageClassification.register(SmallCNNConfig, SmallCNN, exist_ok=True)
