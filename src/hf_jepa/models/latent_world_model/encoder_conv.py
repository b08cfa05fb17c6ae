"""Small ConvNets, for worlds that are learned from pixels in minutes."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_conv_encoder import ConvEncoderConfig


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip; the ReLU after the sum is the original's (EB-JEPA, released code)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.relu(maps + self.conv2(F.relu(self.conv1(maps))))


def _stage(config: ConvEncoderConfig, index: int) -> nn.Sequential:
    before = config.hidden_sizes[index - 1] if index else config.num_channels
    after = config.hidden_sizes[index]
    if config.block_type == "residual":
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1), pool, _ResidualBlock(after), _ResidualBlock(after)
        )
    kernel = config.kernel_sizes[index]
    return nn.Sequential(nn.Conv2d(before, after, kernel, config.strides[index], padding=kernel // 2), nn.ReLU())


class ConvEncoderModel(PreTrainedModel):
    """A small ConvNet: stages, an optional max-pooling, and one or two linear layers that read the whole map."""

    config: ConvEncoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: ConvEncoderConfig):
        super().__init__(config)
        size = config.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        self.stages = nn.ModuleList(_stage(config, index) for index in range(len(config.hidden_sizes)))
        self.pool = nn.MaxPool2d(config.pool_size)
        with torch.device("meta"):
            stages = nn.Sequential(*(_stage(config, index) for index in range(len(config.hidden_sizes))), self.pool)
            width = stages(torch.empty(1, config.num_channels, *self.image_size)).numel()
        if config.intermediate_size is not None:
            hidden = nn.Linear(width, config.intermediate_size)
            self.head = nn.Sequential(hidden, nn.ReLU(), nn.Linear(config.intermediate_size, config.hidden_size))
        else:
            self.head = nn.Linear(width, config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            # torch's own default, which all the originals have.
            bound = (module.weight[0].numel()) ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` `(batch, channels, rows, columns)`, the last stage's map,
            and `pooler_output` `(batch, hidden_size)`.

        Raises:
            `ValueError`: for images of another size or number of channels than configured.
        """
        expected = (self.config.num_channels, *self.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"This ConvNet reads images of shape {expected}, got {tuple(pixel_values.shape[1:])}: its head reads "
                "the whole map, so resize them, or build it for this size."
            )
        maps = pixel_values
        for stage in self.stages:
            maps = stage(maps)
        maps = self.pool(maps)
        return BaseModelOutputWithPooling(last_hidden_state=maps, pooler_output=self.head(maps.flatten(1)))
