"""Published LeWorldModel folders (`weights.pt` and `config.json`) to a world model of this package, and back."""

from collections.abc import Iterator

from ..models.latent_world_model.configuration_latent_world_model import LatentWorldModelConfig

# Original name -> ours, of one layer; the encoder's are those of transformers 4's ViT.
_ENCODER_LAYER = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}
_PREDICTOR_LAYER = {
    "attn.norm": "attention.norm",
    "attn.to_out.0": "attention.proj",
    "mlp.net.0": "mlp.0",
    "mlp.net.1": "mlp.1",
    "mlp.net.4": "mlp.4",
    "adaLN_modulation.1": "modulation",
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_PATCHES = "encoder.embeddings.patch_embeddings.projection"
# A convolution over one frame, which is a linear layer: the last axis of its weight is left out.
POINTWISE = "action_encoder.patch_embed.weight"


def lewm_key_map(config: LatentWorldModelConfig) -> dict[str, str]:
    """
    Original key -> the key of our model that holds it, in the order of the original state dict. SMWM's files have the
    same keys, and those of the inverse model.

    Args:
        config ([`LatentWorldModelConfig`]): like the preset `"lewm"` or `"smwm"`.
    """
    return dict(_pairs(config))


def _pairs(config: LatentWorldModelConfig) -> Iterator[tuple[str, str]]:
    for name in ("cls_token", "position_embeddings"):
        yield f"encoder.embeddings.{name}", f"encoder.embeddings.{name}"
    yield from _both(_PATCHES, _PATCHES)
    for index in range(config.encoder_config.num_hidden_layers):
        for source, name in _ENCODER_LAYER.items():
            yield from _both(f"encoder.encoder.layer.{index}.{source}", f"encoder.layers.{index}.{name}")
    yield from _both("encoder.layernorm", "encoder.layernorm")
    yield "predictor.pos_embedding", "predictor.position_embeddings"
    yield from _both("predictor.transformer.norm", "predictor.norm")
    for index in range(config.predictor_num_hidden_layers):
        source, name = f"predictor.transformer.layers.{index}", f"predictor.layers.{index}"
        yield f"{source}.attn.to_qkv.weight", f"{name}.attention.qkv.weight"
        for original, ours in _PREDICTOR_LAYER.items():
            yield from _both(f"{source}.{original}", f"{name}.{ours}")
    for original, index in (("patch_embed", 0), ("embed.0", 1), ("embed.2", 3)):
        yield from _both(f"action_encoder.{original}", f"predictor.action_encoder.{index}")
    for original, ours in (("projector", "projector"), ("pred_proj", "prediction_projector")):
        yield from _both(f"{original}.net.0", f"{ours}.0")
        for kind in _BATCH_NORM:
            yield f"{original}.net.1.{kind}", f"{ours}.1.{kind}"
        yield from _both(f"{original}.net.3", f"{ours}.3")
    if config.inverse_dynamics_weight:
        for index in (0, 2, 4):
            yield from _both(f"inverse_model.net.{index}", f"inverse_model.layers.{index}")


def _both(source: str, name: str) -> Iterator[tuple[str, str]]:
    for kind in ("weight", "bias"):
        yield f"{source}.{kind}", f"{name}.{kind}"
