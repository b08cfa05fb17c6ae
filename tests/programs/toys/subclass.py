"""I-JEPA with a loss of one's own beside it, and a crop of one's own."""

from huggingface_hub.dataclasses import strict

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, Method, ModelClass, register_method
from hf_jepa.data.image_batches import crop_transform


@strict
class QuietIJepaConfig(IJepaPreTrainingConfig):
    model_type = "toy_quiet_pretraining"
    quiet_weight: float | int = 0.1


class QuietIJepaForPreTraining(IJepaForPreTraining):
    config: QuietIJepaConfig
    config_class = QuietIJepaConfig

    def forward(self, pixel_values, context_mask, target_mask):
        output = super().forward(pixel_values, context_mask, target_mask)
        quiet = sum(prediction.square().mean() for prediction in output.predictions)
        output.loss = output.loss + self.config.quiet_weight * quiet
        output.loss_components["quiet"] = quiet.detach()
        return output


def whole_images(model, *, image_mean=None, image_std=None):
    """No random crop: named settings of a recipe that this method takes, and no others."""
    return crop_transform(model, crop_scale=(1.0, 1.0), image_mean=image_mean, image_std=image_std)


METHOD = register_method(
    Method(
        "toy_quiet",
        "Toy quiet I-JEPA",
        "A toy.",
        composite=ModelClass(QuietIJepaConfig, QuietIJepaForPreTraining),
        batches="masks",
        transform=whole_images,
    )
)
