"""Configuration of the small ConvNets that world models are trained with from pixels."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ...parts import StrictConfig


@strict
class ConvEncoderConfig(StrictConfig):
    r"""
    A small ConvNet that makes one vector of an image of fixed size.

    Args:
        image_size (`int` or `(height, width)`, defaults to 64): in pixels.
        num_channels (`int`, defaults to 3): of the images.
        hidden_sizes (`list[int]`, defaults to `[16, 32, 64]`): channels of the stages.
        block_type (`"strided"` or `"residual"`): `"strided"`: a convolution and a ReLU per stage. `"residual"`:
            IMPALA's stages, which EB-JEPA uses: a 3x3 convolution, a 3x3 max-pooling of stride 2, two residual blocks.
        kernel_sizes, strides (`list[int]`, *optional*): of the strided stages; default to 3 and 2.
        pool_size (`int`, defaults to 1): of a max-pooling after the last stage.
        intermediate_size (`int`, *optional*): of a hidden layer with a ReLU before the output.
        hidden_size (`int`, defaults to 64): width of the output.

    Raises:
        `ValueError`: for sizes below 1, or lists of another length than `hidden_sizes`.
    """

    model_type = "conv_encoder"

    image_size: int | list[int] | tuple[int, int] = 64
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32, 64)
    block_type: Literal["strided", "residual"] = "strided"
    kernel_sizes: list[int] | tuple[int, ...] | None = None
    strides: list[int] | tuple[int, ...] | None = None
    pool_size: int = 1
    intermediate_size: int | None = None
    hidden_size: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.kernel_sizes = self.kernel_sizes or [3] * len(self.hidden_sizes)
        self.strides = self.strides or [2] * len(self.hidden_sizes)

    def validate_sizes(self) -> None:
        """Refuses what no network can be built of."""
        sizes = [self.hidden_size, self.num_channels, self.pool_size, *self.hidden_sizes]
        if not self.hidden_sizes or min(sizes) < 1:
            raise ValueError(f"A ConvNet needs sizes of at least 1, got {sizes}.")
        for name in ("kernel_sizes", "strides"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.hidden_sizes):
                raise ValueError(f"`{name}` must have one entry per stage ({len(self.hidden_sizes)}), got {values}.")
        if self.block_type == "residual" and any(
            value not in (None, [default] * len(self.hidden_sizes))
            for value, default in ((self.kernel_sizes, 3), (self.strides, 2))
        ):
            raise ValueError('Residual stages have kernels of 3 and strides of 2; choose `block_type="strided"`.')
