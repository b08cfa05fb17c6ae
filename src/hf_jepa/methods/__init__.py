"""The one place per method: what the package has to know of each is an entry of one table, and is read from there."""

from .method import (
    BATCHES,
    COMPOSITE,
    METHODS,
    Converter,
    Method,
    ModelClass,
    method_of,
    method_of_model,
    model_classes,
    resolve,
)
from .registration import register_method, watch_transformers
from .table import TABLE

METHODS.update({method.name: method for method in TABLE})

__all__ = [
    "BATCHES",
    "COMPOSITE",
    "METHODS",
    "Converter",
    "Method",
    "ModelClass",
    "method_of",
    "method_of_model",
    "model_classes",
    "register_method",
    "resolve",
    "watch_transformers",
]
