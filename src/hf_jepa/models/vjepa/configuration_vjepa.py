"""Configuration of the video backbone of V-JEPA, V-JEPA 2 and V-JEPA 2.1."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import VJEPA2Config

from ...parts import StrictConfig

Generation = Literal["1", "2", "2.1"]

# name: (hidden size, layers, heads, MLP ratio). Sizes of the released code; the giant and gigantic ones are those
# with heads of 64 channels ("xformers"), which every released checkpoint has. Tiny and small were never published.
VJEPA_SIZES = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 22, 48 / 11),
    "gigantic": (1664, 48, 26, 64 / 13),
}

# Blocks that V-JEPA 2.1 supervises, by depth: evenly spaced, but for the third of 48 (37, not 35).
HIERARCHICAL_LAYERS = {
    12: [2, 5, 8, 11],
    24: [5, 11, 17, 23],
    40: [9, 19, 29, 39],
    48: [11, 23, 37, 47],
}

# What a generation has beside its size: V-JEPA (arXiv 2404.08471), V-JEPA 2 (2506.09985), V-JEPA 2.1 (2603.14482),
# released code. A predictor of generation 1 has as many heads as its encoder.
GENERATION_FIELDS: dict[str, dict[str, Any]] = {
    "1": {
        "position_embedding_type": "sincos",
        "crop_size": 224,
        "frames_per_clip": 16,
        "pred_num_mask_tokens": 2,
        "depth_scaled_init": False,
        "num_pooler_layers": 0,
    },
    "2": {},
    "2.1": {
        "rope_layout": "interleaved",
        "rope_interpolation": True,
        "pred_rope_interpolation": True,
        "use_image_tokenizer": True,
        "pred_context_output": True,
        "pred_num_mask_tokens": 8,
    },
}


@strict
class VJepaConfig(StrictConfig):
    r"""
    Configuration of [`VJepaModel`]. The fields of in-tree `VJEPA2Config` have its names, meanings and defaults, which
    are V-JEPA 2's, and a `config.json` of model type `vjepa2` is read as it is; the others choose a generation. Use
    [`VJepaConfig.from_size`] for a published size.

    Args:
        patch_size (`int`, defaults to 16): rows and columns of a patch, in pixels.
        crop_size (`int`, defaults to 256): configured height and width, in pixels. With rotary positions every other
            size is exact too; the sine-cosine table of this size is interpolated.
        frames_per_clip (`int`, defaults to 64): configured number of frames. With `position_embedding_type="sincos"`,
            1 means an image model, whose table is two-dimensional.
        tubelet_size (`int`, defaults to 2): frames of a patch.
        hidden_size, in_chans, num_attention_heads, num_hidden_layers, mlp_ratio, layer_norm_eps, qkv_bias,
            hidden_act, initializer_range: the encoder's, as in-tree.
        drop_path_rate (`float`, defaults to 0.0): highest rate of stochastic depth, per sample and mask.
        attention_probs_dropout_prob, attention_dropout (`float`, default to 0.0): of blocks and of the pooler.
        num_pooler_layers (`int`, defaults to 3): self-attention blocks of a classifier's attentive pooler, on the
            tokens; with a sine-cosine table on the query (V-JEPA 1, whose released probes have none).
        pooler_num_attention_heads (`int`, defaults to 16): the released probes of every size have 16 heads; in-tree
            takes the encoder's.
        pooler_layer_norm_eps (`float`, defaults to 1e-5): of the pooler; in-tree takes the encoder's 1e-6.
        pred_hidden_size, pred_num_attention_heads, pred_num_hidden_layers, pred_num_mask_tokens,
            pred_zero_init_mask_tokens, pred_mlp_ratio: the predictor's, as in-tree.
        position_embedding_type (`"rope"` or `"sincos"`): rotary, or V-JEPA 1's fixed sine-cosine table.
        uniform_power (`bool`, defaults to `True`): whether the three axes share a sine-cosine table evenly, as in all
            releases; otherwise time takes half of it.
        rope_layout (`"tiled"` or `"interleaved"`): `"tiled"`: V-JEPA 2, which pairs channels one way and repeats
            frequencies another, so that it is no rotation; its weights depend on that. `"interleaved"`: V-JEPA 2.1,
            a rotation.
        rope_interpolation (`bool`, defaults to `False`): whether rows and columns are stretched to the range of a
            256-pixel image (V-JEPA 2.1), in the encoder.
        pred_rope_interpolation (`bool`, defaults to `False`): the same in the predictor. The training configs of 2.1
            set both; its hub loader sets the encoder's only.
        rope_dtype (`"reference"` or `"float32"`): `"reference"` computes angles in the dtype of the queries, as the
            released code: in bfloat16 they are off by up to 0.034 radians within 32 positions. In float32 the two
            are one.
        depth_scaled_init (`bool`, defaults to `True`): whether block `i`, from 1, starts with `attention.proj` and
            the MLP's last matrix divided by `sqrt(2 i)`; V-JEPA 1's training code undoes that.
        hierarchical_layers (`list[int]`, *optional*): V-JEPA 2.1: blocks, from 0 and in order up to the last, whose
            normed outputs are supervised. When omitted, the last block's alone.
        use_image_tokenizer (`bool`, defaults to `False`): V-JEPA 2.1: whether clips of one frame have a patch
            embedding of their own, and both modalities a vector that is added to every token.
        pred_num_levels (`int`, *optional*): how many of the last supervised levels the predictor reads and predicts;
            defaults to all. 1 in the distilled checkpoints of 2.1.
        pred_output_size (`int`, *optional*): width of a predicted level; defaults to `hidden_size`. The teacher's
            width in the distilled checkpoints of 2.1.
        pred_context_output (`bool`, defaults to `False`): V-JEPA 2.1: whether the predictor has a second head, for
            the visible tokens.

    Raises:
        `ValueError`: for sizes that do not divide, levels out of order, or heads too narrow for rotary positions.
    """

    model_type = "vjepa"
    gone_fields = {"use_swiglu": False}

    patch_size: int = 16
    crop_size: int = 256
    frames_per_clip: int = 64
    tubelet_size: int = 2
    hidden_size: int = 1024
    in_chans: int = 3
    num_attention_heads: int = 16
    num_hidden_layers: int = 24
    drop_path_rate: float | int = 0.0
    mlp_ratio: int | float = 4.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_probs_dropout_prob: float | int = 0.0
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    attention_dropout: float | int = 0.0
    num_pooler_layers: int = 3
    pred_hidden_size: int = 384
    pred_num_attention_heads: int = 12
    pred_num_hidden_layers: int = 12
    pred_num_mask_tokens: int = 10
    pred_zero_init_mask_tokens: bool = True
    pred_mlp_ratio: int | float = 4.0

    position_embedding_type: Literal["rope", "sincos"] = "rope"
    uniform_power: bool = True
    rope_layout: Literal["tiled", "interleaved"] = "tiled"
    rope_interpolation: bool = False
    pred_rope_interpolation: bool = False
    rope_dtype: Literal["reference", "float32"] = "reference"
    depth_scaled_init: bool = True
    hierarchical_layers: list[int] | None = None
    use_image_tokenizer: bool = False
    pred_num_levels: int | None = None
    pred_output_size: int | None = None
    pred_context_output: bool = False
    pooler_num_attention_heads: int = 16
    pooler_layer_norm_eps: float = 1e-5

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        # Every field of in-tree V-JEPA 2 means the same here, so its files are no cause for a warning.
        if config_dict.get("model_type") == VJEPA2Config.model_type:
            config_dict = {**config_dict, "model_type": cls.model_type}
        return config_dict, kwargs

    @classmethod
    def from_size(
        cls,
        size: Literal["tiny", "small", "base", "large", "huge", "giant", "gigantic"],
        generation: Generation = "2",
        **kwargs: Any,
    ) -> "VJepaConfig":
        """
        A published size by name, e.g. `VJepaConfig.from_size("large", frames_per_clip=16)`.

        Args:
            size (`str`): `"tiny"`, `"small"`, `"base"`, `"large"`, `"huge"`, `"giant"` or `"gigantic"`.
            generation (`str`): `"1"` (V-JEPA), `"2"` (V-JEPA 2) or `"2.1"`.
            kwargs: other fields of the config.

        Raises:
            `ValueError`: for an unknown size or generation.
        """
        if size not in VJEPA_SIZES:
            raise ValueError(f"Unknown V-JEPA size {size!r}; choose one of {', '.join(VJEPA_SIZES)}.")
        if generation not in GENERATION_FIELDS:
            raise ValueError(
                f"Unknown V-JEPA generation {generation!r}; choose one of {', '.join(GENERATION_FIELDS)}."
            )
        hidden, layers, heads, mlp_ratio = VJEPA_SIZES[size]
        fields = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "mlp_ratio": mlp_ratio,
            **GENERATION_FIELDS[generation],
        }
        if generation == "1":
            fields["pred_num_attention_heads"] = heads
        if generation == "2.1":
            fields["pred_num_hidden_layers"] = 12 if layers == 12 else 24
            fields["hierarchical_layers"] = HIERARCHICAL_LAYERS.get(layers)
            if layers not in HIERARCHICAL_LAYERS and "hierarchical_layers" not in kwargs:
                raise ValueError(f"V-JEPA 2.1 has no {size!r} size: say which blocks are `hierarchical_layers`.")
        return cls(**{**fields, **kwargs})

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Time slots, rows and columns of the configured clip."""
        side = self.crop_size // self.patch_size
        return max(1, self.frames_per_clip // self.tubelet_size), side, side

    @property
    def num_levels(self) -> int:
        """How many levels the encoder has: supervised blocks, 1 before V-JEPA 2.1."""
        return len(self.hierarchical_layers) if self.hierarchical_layers else 1

    @property
    def predicted_levels(self) -> int:
        """How many of the last levels the predictor reads and predicts."""
        return self.pred_num_levels or self.num_levels

    @property
    def predicted_size(self) -> int:
        """Width of a prediction: all its levels together."""
        return self.predicted_levels * (self.pred_output_size or self.hidden_size)

    def validate_sizes(self) -> None:
        """Refuses sizes that cannot be built; runs whenever a config is made."""
        for name in ("patch_size", "crop_size", "frames_per_clip", "tubelet_size", "num_hidden_layers", "in_chans"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("pred_num_hidden_layers", "pred_num_mask_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.crop_size % self.patch_size:
            raise ValueError(f"`crop_size` ({self.crop_size}) must be divisible by `patch_size` ({self.patch_size}).")
        if self.frames_per_clip > 1 and self.frames_per_clip % self.tubelet_size:
            raise ValueError(
                f"`frames_per_clip` ({self.frames_per_clip}) must be divisible by `tubelet_size` "
                f"({self.tubelet_size})."
            )
        for name, heads in (("hidden_size", "num_attention_heads"), ("pred_hidden_size", "pred_num_attention_heads")):
            width, count = getattr(self, name), getattr(self, heads)
            if count < 1 or width % count:
                raise ValueError(f"`{name}` ({width}) must be divisible by `{heads}` ({count}).")
            if self.position_embedding_type == "rope" and width // count < 6:
                raise ValueError(
                    f"Rotary positions need 6 channels per head, 2 for each axis; `{name}` / `{heads}` is "
                    f"{width // count}."
                )

    def validate_levels(self) -> None:
        """Refuses supervised blocks that do not exist or do not end at the last, and levels that no block makes."""
        layers = self.hierarchical_layers
        if layers is not None and (
            not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] != self.num_hidden_layers - 1
        ):
            raise ValueError(
                f"`hierarchical_layers` must be increasing block indices from 0 that end with the last, "
                f"{self.num_hidden_layers - 1}, got {layers}."
            )
        if self.pred_num_levels is not None and not 1 <= self.pred_num_levels <= self.num_levels:
            raise ValueError(
                f"`pred_num_levels` must lie between 1 and the encoder's {self.num_levels}, got "
                f"{self.pred_num_levels}."
            )
