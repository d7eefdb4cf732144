"""fgkd: offline-logit, two-stage knowledge distillation for fine-grained image classification."""

__version__ = "0.1.0"
