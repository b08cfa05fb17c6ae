"""Names of the original V-JEPA checkpoints of all generations, and the parameters of ours that they stand for."""

from collections.abc import Iterable, Iterator

from ..models.vjepa.configuration_vjepa import VJepaConfig
from .key_maps import KeyMaps

# Group of a file -> our module. The distilled checkpoints of V-JEPA 2.1 name the moving average differently.
MODULES = {
    "encoder": "encoder",
    "predictor": "predictor",
    "target_encoder": "target_encoder",
    "ema_encoder": "target_encoder",
}
_BLOCK = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.query", "attention.key", "attention.value"),
    "attn.proj": ("attention.proj",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}


def block_keys(config: VJepaConfig, blocks: str, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Original keys of transformer blocks -> parameters of ours, those of a fused projection together."""
    for index in range(depth):
        for source, names in _BLOCK.items():
            for kind in ("weight", "bias"):
                if config.qkv_bias or (source, kind) != ("attn.qkv", "bias"):
                    yield f"{blocks}.{index}.{source}.{kind}", tuple(f"layer.{index}.{name}.{kind}" for name in names)


def _modality_keys(config: VJepaConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    if config.use_image_tokenizer:
        yield "img_mod_embed", ("embeddings.image_modality",)
        yield "video_mod_embed", ("embeddings.video_modality",)


def paired_keys(*names: tuple[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Weight and bias of modules that are one there and here."""
    for source, name in names:
        for kind in ("weight", "bias"):
            yield f"{source}.{kind}", (f"{name}.{kind}",)


def _encoder_keys(config: VJepaConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Original key -> parameters of [`VJepaEncoder`], in the order of the original state dict."""
    yield from _modality_keys(config)
    if config.position_embedding_type == "sincos":
        yield "pos_embed", ("embeddings.position_embeddings",)
    yield from paired_keys(("patch_embed.proj", "embeddings.patch_embeddings.proj"))
    if config.use_image_tokenizer:
        yield from paired_keys(("patch_embed_img.proj", "embeddings.image_patch_embeddings.proj"))
    yield from block_keys(config, "blocks", config.num_hidden_layers)
    if config.hierarchical_layers is None:
        yield from paired_keys(("norm", "layernorm"))
        return
    last = config.num_levels - 1
    yield from paired_keys(*((f"norms_block.{level}", f"level_norms.{level}") for level in range(last)))
    yield from paired_keys((f"norms_block.{last}", "layernorm"))


def _predictor_keys(config: VJepaConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Original key -> parameters of [`VJepaPredictor`]; `mask_tokens` stands for all of them."""
    yield from _modality_keys(config)
    if config.position_embedding_type == "sincos":
        yield "predictor_pos_embed", ("embeddings.position_embeddings",)
    embed = "embeddings.predictor_embeddings"
    parts = [""] if config.predicted_levels == 1 else [".0", ".2"]
    yield from paired_keys(*((f"predictor_embed{part}", f"{embed}{part}") for part in parts))
    yield "mask_tokens", ("embeddings.mask_tokens",)
    yield from block_keys(config, "predictor_blocks", config.pred_num_hidden_layers)
    yield from paired_keys(("predictor_norm", "layernorm"), ("predictor_proj", "proj"))
    if config.pred_context_output:
        yield from paired_keys(("predictor_proj_context", "proj_context"))


def key_maps(config: VJepaConfig, groups: Iterable[str]) -> KeyMaps:
    """For each group of a file, where its tensors go in the pretraining model."""
    keys = {name: _predictor_keys if name == "predictor" else _encoder_keys for name in groups}
    return {
        group: {source: tuple(f"{MODULES[group]}.{name}" for name in names) for source, names in of(config)}
        for group, of in keys.items()
    }
