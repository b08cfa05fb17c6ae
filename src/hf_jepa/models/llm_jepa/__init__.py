from .configuration_llm_jepa import LLMJepaConfig
from .modeling_llm_jepa import LLMJepaForCausalLM
from .objective_llm_jepa import LLMJepaOutput
from .predictor_tokens import add_predictor_tokens, predictor_token_ids

__all__ = ["LLMJepaConfig", "LLMJepaForCausalLM", "LLMJepaOutput", "add_predictor_tokens", "predictor_token_ids"]
