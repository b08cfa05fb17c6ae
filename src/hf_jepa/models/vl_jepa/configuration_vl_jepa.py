"""Configuration of VL-JEPA."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...regularized import RegularizedPreTrainingConfig

ACTIVATIONS = ("identity", "tanh", "relu", "gelu")
# Parts that may be kept by reference, and under which names.
PARTS = ("vision", "predictor", "y_encoder", "y_decoder")


@strict
class VLJepaConfig(RegularizedPreTrainingConfig):
    r"""
    Configuration of [`VLJepaModel`] (arXiv 2512.10942): from the visual tokens of an image or clip and a query, a
    predictor tells the embedding of the text that answers; the loss compares embeddings, not tokens. There is no
    official code. Where the paper is silent, the field says so and which reading is the default. The fields of
    [`~hf_jepa.regularized.RegularizedPreTrainingConfig`] apply to predicted and target embeddings, and here

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*): the X-encoder: in-tree `vjepa2`, our `vjepa`, or any
            vision encoder that `AutoModel` builds. Defaults to `VJEPA2Config()`, the paper's ViT-L.
        predictor_config (`dict` or `PreTrainedConfig`, *optional*): any decoder with Llama's interface; `is_causal` is
            set to `False`. Defaults to eight layers of Llama-3.2-1B.
        y_encoder_config (`dict` or `PreTrainedConfig`, *optional*): any text encoder. Defaults to EmbeddingGemma's
            `gemma3_text`, without its two dense heads unless `y_dense_layers` names them.
        y_decoder_config (`dict` or `PreTrainedConfig`, *optional*): a causal language model that turns embeddings into
            text; trained apart from the rest. Not stated in the paper, and absent by default.
        projection_dim (`int`, defaults to 1536): width of the shared space.
        pool_tokens (`"all"` or `"query"`): what the predictor's output is averaged over: every token that is no
            padding, vision tokens included (the paper's words taken literally; not stated), or query tokens alone.
        vision_positions (`"running"` or `"shared"`): position ids of vision tokens: 0, 1, 2, ... with the query
            behind, or all 0 with the query from 1 on. Not stated.
        image_num_frames (`int`, *optional*): frames that a video encoder gets of a still image, all the same. By
            default one tubelet, or as many as an encoder of fixed length takes; the paper fills the clip in joint
            training.
        freeze_vision (`bool`, defaults to `True`): keep the X-encoder as it is. `False` is the last stage of the
            Action100M recipe.
        freeze_token_embeddings (`bool`, defaults to `True`): keep the predictor's token embeddings as they are. Not
            stated; the published count of trainable weights leaves them out.
        target (`"shared"`, `"frozen"` or `"ema"`): the Y-encoder is trained with the rest (paper), is frozen (its
            ablations; a linear `y_projection` still trains), or follows by moving average. With `"ema"` predictions
            are compared with the average's embeddings and, with equal weight, the Y-encoder's embeddings with the
            predictions, each time without gradient to the other side. That form is ours: the paper names EMA as an
            alternative and no more.
        y_pooling (`"mean"`, `"cls"` or `"last"`): of the Y-encoder's states.
        y_dense_layers (`list[dict]`): dense heads between pooling and projection, as sentence-transformers applies
            them: `{"out_features": int, "bias": bool, "activation": "identity" | "tanh" | "relu" | "gelu"}` each.
            Whether the paper keeps EmbeddingGemma's two is not stated; [`VLJepaModel.from_components`] does.
        y_projection (`"linear"` or `"none"`): a new linear map to the shared width, or none, as in the paper's
            comparison of losses.
        loss (`"infonce"`, `"cosine"`, `"l1"` or `"l2"`): bidirectional InfoNCE among all processes' pairs (paper);
            1 - cosine; mean absolute or mean squared difference of embeddings as they are, not normalised.
        temperature (`float`, defaults to 0.07): of InfoNCE; at the start where it is learned. Not stated.
        learnable_temperature (`bool`, defaults to `True`): learned as CLIP's is, at least 0.01. Not stated.
        mask_duplicates (`bool`, defaults to `True`): examples of one target text are no negatives of each other. The
            paper does not mention them.
        regularizer (`"none"`, `"sigreg"`, `"visreg"`, `"weak_sigreg"` or `"vicreg"`).
        y_decoder_prefix_length (`int`, defaults to 8): soft tokens that an embedding becomes for the Y-decoder.
        freeze_y_decoder (`bool`, defaults to `True`): train the Y-decoder's prefix map alone.
        sources (`dict[str, dict]`, *optional*): where parts came from: `{"vision": {"name_or_path": str, "revision":
            str or None}, ...}` for `vision`, `predictor`, `y_encoder`, `y_decoder`; set by `from_components`. Those of
            parts that train are marked `"changed"`.
        save_frozen (`bool`, defaults to `True`): `False` leaves frozen parts out of checkpoints and loads them from
            `sources`.
        predictor_adapter (`dict`, *optional*): peft's LoRA configuration of the predictor; set by
            [`VLJepaModel.add_predictor_adapter`].
        vision_hidden_size (`int`, *optional*): width of vision tokens; found out when missing.

    Raises:
        `ValueError`: for sizes or weights out of range, dense layers or sources of another form, a temperature below
            0.01.
    """

    model_type = "vl_jepa"
    gone_fields = {"projection_bias": True}
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vjepa2"),
        "predictor_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="llama",
            init_kwargs={
                "vocab_size": 128256,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 8,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
        ),
        "y_encoder_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="gemma3_text",
            init_kwargs={
                "vocab_size": 262144,
                "hidden_size": 768,
                "intermediate_size": 1152,
                "num_hidden_layers": 24,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "max_position_embeddings": 2048,
                "sliding_window": 512,
                "use_bidirectional_attention": True,
            },
        ),
        "y_decoder_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    predictor_config: dict | PreTrainedConfig | None = None
    y_encoder_config: dict | PreTrainedConfig | None = None
    y_decoder_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 1536
    pool_tokens: Literal["all", "query"] = "all"
    vision_positions: Literal["running", "shared"] = "running"
    image_num_frames: int | None = None
    freeze_vision: bool = True
    freeze_token_embeddings: bool = True
    target: Literal["shared", "frozen", "ema"] = "shared"
    y_pooling: Literal["mean", "cls", "last"] = "mean"
    y_dense_layers: list[dict] | tuple[dict, ...] = ()
    y_projection: Literal["linear", "none"] = "linear"
    loss: Literal["infonce", "cosine", "l1", "l2"] = "infonce"
    temperature: float | int = 0.07
    learnable_temperature: bool = True
    mask_duplicates: bool = True
    regularizer: Literal["none", "sigreg", "visreg", "weak_sigreg", "vicreg"] = "none"
    y_decoder_prefix_length: int = 8
    freeze_y_decoder: bool = True
    sources: dict[str, dict] | None = None
    save_frozen: bool = True
    predictor_adapter: dict | None = None
    vision_hidden_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # Read by transformers' own mask functions.
        self.predictor_config.is_causal = False
        self.predictor_config.use_cache = False

    @property
    def regularizes_itself(self) -> bool:
        """Whether something but the regularizer keeps embeddings apart: negatives, or targets that stay put."""
        return self.loss == "infonce" or (self.target == "frozen" and self.y_projection == "none")

    def validate_vl_jepa(self) -> None:
        """Refuses contradictory options; runs whenever a config is made."""
        for name in ("projection_dim", "y_decoder_prefix_length", "image_num_frames", "vision_hidden_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not 0.01 <= self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be at least 0.01, CLIP's bound, got {self.temperature}.")
        for layer in self.y_dense_layers:
            if set(layer) != {"out_features", "bias", "activation"} or layer["activation"] not in ACTIVATIONS:
                raise ValueError(
                    'A dense layer is {"out_features": int, "bias": bool, "activation": one of '
                    f"{ACTIVATIONS}}}, got {layer}."
                )
        for part, source in (self.sources or {}).items():
            if part not in PARTS or not source.get("name_or_path"):
                raise ValueError(
                    f"`sources` maps {PARTS} to {{'name_or_path': ..., 'revision': ...}}, got {part!r}: {source}."
                )
