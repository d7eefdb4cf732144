"""A Lightning module on cached targets: python lightning_module.py CACHE [EPOCHS]"""

import sys

import lightning
import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fgkd


class Student(lightning.LightningModule):
    """A timm model that learns a teacher's cached logits."""

    def __init__(self, model: str, num_classes: int) -> None:
        super().__init__()
        self.net = timm.create_model(model, num_classes=num_classes)
        config = timm.data.resolve_model_data_config(self.net)
        for name in ("mean", "std"):
            value = torch.tensor(config[name]).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        logits = self.net((batch["image"] / 255 - self.mean) / self.std)
        loss = fgkd.losses.kl(
            student_logits=logits, teacher_logits=batch["teacher_logits"], temperature=2.0
        )
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(logits))
        return loss

    def on_train_epoch_start(self) -> None:
        self.trainer.train_dataloader.dataset.set_epoch(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics["loss"]
        self.print(f"epoch {self.current_epoch + 1}  loss {loss:.4f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


def main(cache: str, epochs: int = 30) -> None:
    """Train on all devices that Lightning finds; it adds the distributed sampler itself."""
    views = fgkd.CachedViews(fgkd.open_cache(cache))
    loader = DataLoader(views, 64, shuffle=True, num_workers=2, persistent_workers=True)
    trainer = lightning.Trainer(max_epochs=epochs, logger=False, log_every_n_steps=1)
    trainer.fit(Student("resnet10t", len(views.classes)), loader)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
