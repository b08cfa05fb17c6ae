"""Published world models as fields of the config, at their published sizes."""

from typing import Any

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

_VIT_TINY_14 = {
    "model_type": "vit",
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "patch_size": 14,
    "image_size": 224,
}

_LEWM: dict[str, Any] = {
    "encoder_config": _VIT_TINY_14,
    "pooling": "cls",
    "projector_hidden_size": 2048,
    "predictor_type": "transformer",
    "predictor_dropout": 0.1,
    "frameskip": 5,
    "action_dim": 10,
    **_IMAGENET,
}

# Two rooms: a channel for the dot and one for the wall.
_IMPALA = {
    "model_type": "conv_encoder",
    "block_type": "residual",
    "image_size": 65,
    "num_channels": 2,
    "hidden_sizes": [16, 32, 32],
    "hidden_size": 512,
}

PRESETS: dict[str, dict[str, Any]] = {
    "lewm": {**_LEWM, "context_frames": 3, "sigreg_weight": 0.09},
    "smwm": {**_LEWM, "context_frames": 1, "inverse_dynamics_weight": 10.0},
    "pldm": {
        "encoder_config": _IMPALA,
        "predictor_type": "gru",
        "rollout_steps": 16,
        "action_dim": 2,
        "variance_frames": "first",
        "variance_weight": 3.98,
        "covariance_weight": 6.92,
        "temporal_variance_weight": 0.245,
        "temporal_similarity_weight": 0.742,
        "inverse_dynamics_weight": 1.07,
    },
    "eb_jepa": {
        "encoder_config": _IMPALA,
        "latent_space": "layer_norm",
        "predictor_type": "gru",
        "rollout_steps": 8,
        "action_dim": 2,
        "variance_weight": 16.0,
        "covariance_weight": 8.0,
        "temporal_similarity_weight": 12.0,
        "inverse_dynamics_weight": 1.0,
        "image_mean": [0.0026, 0.0989],
        "image_std": [0.0369, 0.2986],
    },
    "dino_wm": {
        "encoder_config": {
            "model_type": "dinov2",
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "patch_size": 14,
            "image_size": 196,
        },
        "freeze_encoder": True,
        "pooling": "patches",
        "predictor_type": "transformer",
        "predictor_dropout": 0.1,
        "context_frames": 3,
        "action_embedding_size": 10,
        "frameskip": 5,
        "action_dim": 10,
        **_IMAGENET,
    },
}
