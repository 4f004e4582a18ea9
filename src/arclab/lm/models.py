"""From a model's configuration to the model. What a kind needs is imported only when it is asked for.

    model = load_language_model(config.lm)

A method may bring a kind of its own: a row here names the function that loads it.
"""

from __future__ import annotations

from arclab.config.llm_schema import MODEL_SCHEMAS, ModelConfig
from arclab.entries import load
from arclab.lm.language_model import LanguageModel

# Kind -> "module:function", called with the configuration.
LOADERS = {
    "hf": "arclab.lm.hf:load_hf",
    "endpoint": "arclab.lm.endpoint.model:load_endpoint",
    "memgen": "arclab.methods.memgen.language:load_with_memory",
}
assert LOADERS.keys() == MODEL_SCHEMAS.keys()


def load_language_model(config: ModelConfig) -> LanguageModel:
    """ValueError, in one sentence: a model that cannot be had. A server is not asked before its first request."""
    (kind,) = (name for name, schema in MODEL_SCHEMAS.items() if type(config) is schema)
    return load(LOADERS[kind])(config)
