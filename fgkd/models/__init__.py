"""timm image classifiers behind one output type: creation, weights, saving, export."""

from fgkd.models.classifier import Classifier, KeyedDropPath, Logits
from fgkd.models.factory import create
from fgkd.models.local_dir import load, save

__all__ = ["Classifier", "KeyedDropPath", "Logits", "create", "load", "save"]
