"""Configuration of C-JEPA pretraining."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ..ijepa.configuration_ijepa import IJepaPreTrainingConfig


@strict
class CJepaPreTrainingConfig(IJepaPreTrainingConfig):
    r"""
    Configuration of [`CJepaForPreTraining`]: the fields of [`IJepaPreTrainingConfig`], and

    Args:
        vicreg_weight (`float`, defaults to 0.001): weight of the whole VICReg loss.
        sim_weight, std_weight, cov_weight (`float`, default to 25, 25 and 1): VICReg's own coefficients.
        regularized (`"predicted_blocks"` or `"context"`): which embeddings VICReg sees; see [`CJepaForPreTraining`].
        projector_hidden_size (`int`, defaults to 1024): width of the projector's two hidden layers.
        projector_output_size (`int`, defaults to 1024): width of the embeddings VICReg sees.

    Raises:
        `ValueError`: for negative weights, sizes below 1, and what [`IJepaPreTrainingConfig`] refuses.
    """

    model_type = "cjepa_pretraining"

    vicreg_weight: float | int = 0.001
    sim_weight: float | int = 25.0
    std_weight: float | int = 25.0
    cov_weight: float | int = 1.0
    regularized: Literal["predicted_blocks", "context"] = "predicted_blocks"
    projector_hidden_size: int = 1024
    projector_output_size: int = 1024

    @property
    def regularizes_itself(self) -> bool:
        return True

    def validate_vicreg(self) -> None:
        """Refuses weights and sizes that make no sense; runs whenever a config is made."""
        if self.regularizer != "none":
            raise ValueError(
                f"C-JEPA's regularizer is VICReg, weighted by `vicreg_weight`; `regularizer` is {self.regularizer!r}. "
                "Leave it 'none', or use I-JEPA."
            )
        for name in ("vicreg_weight", "sim_weight", "std_weight", "cov_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        for name in ("projector_hidden_size", "projector_output_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
