"""fgkd: offline-logit, two-stage knowledge distillation for fine-grained image classification.

    cache = fgkd.open_cache("runs/cache")            # the teacher's logits; a folder or a URL
    views = fgkd.CachedViews(cache)                  # a torch Dataset of views and their logits
    teacher = fgkd.load_classifier("runs/teacher")   # or local-dir:, hf-hub:, timm:
    fgkd.capture(teacher, dataset=fgkd.open_dataset("folder:/data/birds"), views=8, output="c")
    fgkd.losses.kl(student_logits=s, teacher_logits=t, temperature=2.0)

Each command is also a function with the command's option names: `train_teacher`, `cache_logits`,
`train_student`, `evaluate`, `inspect`; and `predict` and `export` use a trained model. Errors are
subclasses of `fgkd.errors.FgkdError`. Importing fgkd imports neither torch nor any other heavy
package: each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgkd import errors as errors
    from fgkd import losses as losses
    from fgkd.cache.remote import open_cache as open_cache
    from fgkd.commands.cache_logits import cache_logits as cache_logits
    from fgkd.commands.capture import capture as capture
    from fgkd.commands.evaluate import evaluate as evaluate
    from fgkd.commands.export import export as export
    from fgkd.commands.inspect import inspect as inspect
    from fgkd.commands.predict import predict as predict
    from fgkd.commands.train_student import train_student as train_student
    from fgkd.commands.train_teacher import train_teacher as train_teacher
    from fgkd.data import open_dataset as open_dataset
    from fgkd.loading.cached_views import CachedViews as CachedViews
    from fgkd.models.external import as_classifier as as_classifier
    from fgkd.models.loading import load_classifier as load_classifier

__version__ = "0.1.0"

_MODULE_OF = {  # of each public name
    "open_cache": "fgkd.cache.remote",
    "CachedViews": "fgkd.loading.cached_views",
    "open_dataset": "fgkd.data",
    "load_classifier": "fgkd.models.loading",
    "as_classifier": "fgkd.models.external",
    "capture": "fgkd.commands.capture",
    "train_teacher": "fgkd.commands.train_teacher",
    "cache_logits": "fgkd.commands.cache_logits",
    "train_student": "fgkd.commands.train_student",
    "evaluate": "fgkd.commands.evaluate",
    "predict": "fgkd.commands.predict",
    "export": "fgkd.commands.export",
    "inspect": "fgkd.commands.inspect",
}
_MODULES = ("errors", "losses")
__all__ = ["__version__", *_MODULES, *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"fgkd.{name}")
    raise AttributeError(f"module 'fgkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
