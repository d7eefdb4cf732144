"""Hugging Face's Trainer on cached targets: python hugging_face_trainer.py CACHE [EPOCHS]"""

import sys
from typing import Any

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import fgkd


class Distiller(Trainer):
    """A Trainer whose loss is the divergence from the teacher's cached logits."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        logits = model(pixel_values=inputs["pixel_values"]).logits
        targets = inputs["teacher_logits"]
        return fgkd.losses.kl(student_logits=logits, teacher_logits=targets, temperature=2.0)


class NextView(TrainerCallback):
    """Shows the next of the cache's views in each epoch."""

    def __init__(self, views: fgkd.CachedViews) -> None:
        self.views = views

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.views.set_epoch(round(state.epoch or 0))


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of images in [-1, 1], as ViT takes them."""
    batch = torch.utils.data.default_collate(items)
    pixels = batch["image"] / 127.5 - 1
    return {"pixel_values": pixels, "teacher_logits": batch["teacher_logits"]}


def main(cache: str, epochs: int = 30) -> None:
    """Train a small ViT from scratch."""
    views = fgkd.CachedViews(fgkd.open_cache(cache))
    size = {"image_size": views[0]["image"].shape[-1], "patch_size": 8}
    width = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4}
    config = ViTConfig(**size, **width, num_attention_heads=3, num_labels=len(views.classes))
    options = TrainingArguments("student", num_train_epochs=epochs, learning_rate=1e-3)
    options.set_dataloader(train_batch_size=64, num_workers=2, persistent_workers=True)
    options.set_logging(strategy="epoch", report_to=[])
    options.remove_unused_columns, options.disable_tqdm = False, True
    model, callbacks = ViTForImageClassification(config), [NextView(views)]
    Distiller(model, options, collate, train_dataset=views, callbacks=callbacks).train()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
