"""From a model's configuration to the model. What a kind needs is imported only when it is asked for."""

from __future__ import annotations

from arclab.config.llm_schema import EndpointModelConfig, HfModelConfig, ModelConfig
from arclab.lm.language_model import LanguageModel


def load_language_model(config: ModelConfig) -> LanguageModel:
    """ValueError, in one sentence: a model that cannot be had. A server is not asked before its first request."""
    if isinstance(config, HfModelConfig):
        from arclab.lm.hf import load_hf

        return load_hf(config)
    assert isinstance(config, EndpointModelConfig), type(config)
    from arclab.lm.endpoint.model import load_endpoint

    return load_endpoint(config)
