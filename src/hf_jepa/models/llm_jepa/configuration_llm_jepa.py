"""Configuration of LLM-JEPA."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...regularized import RegularizedPreTrainingConfig


@strict
class LLMJepaConfig(RegularizedPreTrainingConfig):
    r"""
    Configuration of [`LLMJepaForCausalLM`] (arXiv 2509.14252):
    `loss = jepa_gamma * next-token loss + jepa_lambda * distance(predictor(Enc(Text)), Enc(Code))`, where `Enc` is a
    decoder's last hidden state after its final norm. The fields of
    [`~hf_jepa.regularized.RegularizedPreTrainingConfig`] apply to the embeddings of Text and Code, and here

    Args:
        decoder_config (`dict` or `PreTrainedConfig`, *optional*): any causal language model that
            `AutoModelForCausalLM` builds from full and sliding-window attention layers. Defaults to `LlamaConfig()`.
        objective (`"jepa"` or `"stp"`): `"stp"` is semantic tube prediction (arXiv 2602.22617): displacements between
            states of the ordinary pass are parallel; no pairs, no predictor tokens.
        num_predictor_tokens (`int`, defaults to 1): k. 0: the last Text state itself is the prediction.
        predictor_mode (`"soft"` or `"vocab"`): whether predictor tokens are vectors beside the vocabulary, so that the
            decoder stays as it was, or rows of it, as in the released code.
        predictor_token_ids (`list[int]`, *optional*): the k rows in the order in which they stand, of
            [`add_predictor_tokens`]; `"vocab"` mode only. The released code has them in descending order behind the
            view, `<|predictor_k|> ... <|predictor_1|>`, and in ascending order before it.
        original_vocab_size (`int`, *optional*): rows before predictor tokens were added; set by `from_decoder`.
        predictor_head (`"none"` or `"linear"`): `"linear"` maps the prediction by a square matrix without bias.
        predictor_position (`"end"` or `"front"`): of the predictor tokens and their view; the released `front_pred`.
        direction (`"text2code"` or `"code2text"`): which view predicts the other; the released `reverse_pred`.
        pooling (`"last"` or `"mean"`): read the state at an index, or the mean of all states that it attends to
            (released `avg_encoding`).
        distance (`"cosine"`, `"l2"`, `"mse"` or `"infonce"`): 1 - cosine; the norm of the difference; its mean square;
            one-directional InfoNCE among all processes' pairs.
        temperature (`float`, defaults to 0.07): of InfoNCE.
        jepa_lambda (`float`, defaults to 1.0), jepa_gamma (`float`, defaults to 1.0): weights of the two terms. STP
            wants a lambda of about 0.02.
        target (`"shared"`, `"stop_gradient"` or `"ema"`): whether the target embedding has a gradient (released code),
            has none, or comes from a moving average of the decoder, which takes a second forward pass.
        regularizer (`"none"`, `"sigreg"`, `"visreg"`, `"weak_sigreg"` or `"vicreg"`).
        decoder_adapter (`dict`, *optional*): peft's configuration of the adapter in the decoder; set by
            [`LLMJepaForCausalLM.add_decoder_adapter`], or of a peft decoder.

    Raises:
        `ValueError`: for k below 0, token ids that do not fit k and mode, a predictor head without predictor tokens,
            STP with what it lacks, weights or a temperature out of range.
    """

    model_type = "llm_jepa"
    sub_configs_defaults = {"decoder_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    decoder_config: dict | PreTrainedConfig | None = None
    objective: Literal["jepa", "stp"] = "jepa"
    num_predictor_tokens: int = 1
    predictor_mode: Literal["soft", "vocab"] = "soft"
    predictor_token_ids: list[int] | tuple[int, ...] | None = None
    original_vocab_size: int | None = None
    predictor_head: Literal["none", "linear"] = "none"
    predictor_position: Literal["end", "front"] = "end"
    direction: Literal["text2code", "code2text"] = "text2code"
    pooling: Literal["last", "mean"] = "last"
    distance: Literal["cosine", "l2", "mse", "infonce"] = "cosine"
    temperature: float | int = 0.07
    jepa_lambda: float | int = 1.0
    jepa_gamma: float | int = 1.0
    target: Literal["shared", "stop_gradient", "ema"] = "shared"
    regularizer: Literal["none", "sigreg", "visreg", "weak_sigreg", "vicreg"] = "none"
    decoder_adapter: dict | None = None

    @property
    def regularizes_itself(self) -> bool:
        """True: the next-token loss keeps the states from collapsing altogether."""
        return True

    def validate_llm_jepa(self) -> None:
        """Refuses contradictory options; runs whenever a config is made."""
        k, ids = self.num_predictor_tokens, self.predictor_token_ids
        if k < 0:
            raise ValueError(f"`num_predictor_tokens` must not be negative, got {k}.")
        if self.predictor_mode == "soft" and ids is not None:
            raise ValueError("`predictor_token_ids` belong to predictor_mode='vocab'; leave them out, or set it.")
        if self.predictor_mode == "vocab" and len(ids or ()) != k:
            raise ValueError(
                f"predictor_mode='vocab' needs {k} `predictor_token_ids`, got {ids}; `from_decoder` with a tokenizer, "
                "or `add_predictor_tokens`, makes them."
            )
        for name in ("jepa_lambda", "jepa_gamma"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a finite number that is not negative, got {getattr(self, name)}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be positive and finite, got {self.temperature}.")
        if self.objective == "stp":
            wrong = {"num_predictor_tokens": k > 0, "target='ema'": self.target == "ema"}
            wrong |= {"regularizer": self.regularizer != "none", "pooling='mean'": self.pooling == "mean"}
            if any(wrong.values()):
                names = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
                raise ValueError(f"objective='stp' has no views, hence no {names}; set num_predictor_tokens=0.")
        elif k == 0 and self.predictor_head != "none":
            raise ValueError(
                f"num_predictor_tokens=0 makes the predictor the identity, but predictor_head is "
                f"{self.predictor_head!r}; use at least one predictor token, or predictor_head='none'."
            )
