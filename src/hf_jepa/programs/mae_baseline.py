"""The MAE baseline of `pretrain_image.py`: in-tree ViT-MAE with what the trainer and the release ask of a model."""

from typing import Any

import torch
import transformers
from transformers import ViTConfig, ViTMAEConfig, ViTModel

from ..data.seeding import mix_seed
from ..modeling_jepa import JepaOutput, JepaPreTrainedModel


# The in-tree name, so that the saved config names the class that plain transformers loads it with.
class ViTMAEForPreTraining(JepaPreTrainedModel, transformers.ViTMAEForPreTraining):
    """
    Masked autoencoder (arXiv 2111.06377), for comparison tables only. There is no target encoder. Its features are the
    patch tokens of whole images; the exported encoder is a plain `ViTModel`, since in-tree `ViTMAEModel` drops and
    shuffles patches in eval mode too.
    """

    config: ViTMAEConfig
    base_model_prefix = "vit"

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        if self.device.type != "meta":
            self._fill_position_tables()

    @torch.no_grad()
    def _fill_position_tables(self) -> None:
        # transformers 5.23 leaves both frozen tables at zero: its encoder's method returns early once the projection
        # is initialised, and its decoder's zeroes what the constructor wrote. Released checkpoints bring their tables;
        # trained from scratch, all masked patches would look the same.
        embeddings = self.vit.embeddings
        embeddings.patch_embeddings.projection._is_hf_initialized = False
        embeddings.initialize_weights()
        self.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> JepaOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).
            noise (`torch.FloatTensor` of shape `(batch, patches)`): the patches of least noise are visible.
        """
        loss = super().forward(pixel_values, noise=noise).loss
        return JepaOutput(loss=loss, loss_components={"reconstruction_loss": loss.detach()})

    @torch.no_grad()
    def get_features(self, pixel_values: torch.Tensor, which: str = "target") -> torch.Tensor:
        embeddings, vit = self.vit.embeddings, self.vit
        positions = embeddings.position_embeddings
        patches = embeddings.patch_embeddings(pixel_values) + positions[:, 1:]
        cls_token = (embeddings.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        states = torch.cat([cls_token, patches], dim=1)
        for layer in vit.layers:
            states = layer(states)
        return vit.layernorm(states)[:, 1:]

    def export_encoder(self, which: str = "target") -> ViTModel:
        shared = ViTConfig().to_dict().keys() & self.config.to_dict().keys() - {"model_type", "architectures"}
        config = ViTConfig(**{name: getattr(self.config, name) for name in shared})
        encoder = ViTModel(config, add_pooling_layer=False)
        encoder.load_state_dict(self.vit.state_dict())
        return encoder.eval()


class NoiseCollator:
    """
    Stacks images and draws the noise that chooses MAE's visible patches, from `(seed, draw)` of each sample alone, so
    that batches are the same with any number of workers and processes, and in a resumed run.

    Args:
        num_patches (`int`): of one image.
        seed (`int`).
    """

    def __init__(self, num_patches: int, seed: int) -> None:
        self.num_patches, self.seed = num_patches, seed

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        generators = (torch.Generator().manual_seed(mix_seed(self.seed, sample["draw"])) for sample in samples)
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "noise": torch.stack([torch.rand(self.num_patches, generator=generator) for generator in generators]),
        }


def noise_collator(model: ViTMAEForPreTraining, *, seed: int = 0) -> NoiseCollator:
    """The collator that chooses visible patches of the model's grid."""
    return NoiseCollator(model.vit.embeddings.patch_embeddings.num_patches, seed)
