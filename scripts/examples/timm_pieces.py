"""timm's optimizer, scheduler and EMA on cached targets: python timm_pieces.py CACHE [EPOCHS]"""

import sys

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3
from torch.utils.data import DataLoader

import fgkd


def main(cache: str, epochs: int = 30, model: str = "resnet10t") -> None:
    """Train as timm's train.py does, with the teacher's logits in place of the labels."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = fgkd.CachedViews(fgkd.open_cache(cache))
    loader = DataLoader(views, 64, shuffle=True, num_workers=2, persistent_workers=True)
    student = timm.create_model(model, num_classes=len(views.classes), drop_path_rate=0.05)
    student.to(device)
    config = timm.data.resolve_model_data_config(student)
    mean, std = (
        torch.tensor(config[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std")
    )
    optimizer = create_optimizer_v2(student, "lamb", lr=4e-3, weight_decay=0.02)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        num_epochs=epochs,
        warmup_epochs=min(5, epochs // 4),
        warmup_lr=1e-4,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    ema = ModelEmaV3(student, decay=0.99, use_warmup=True)
    updates = 0
    for epoch in range(epochs):
        views.set_epoch(epoch)
        meter = AverageMeter()
        for batch in loader:
            logits = student((batch["image"].to(device) / 255 - mean) / std)
            teacher_logits = batch["teacher_logits"].to(device)
            loss = fgkd.losses.kl(student_logits=logits, teacher_logits=teacher_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            ema.update(student, step=updates)
            scheduler.step_update(updates, metric=loss.item())
            meter.update(loss.item(), len(logits))
        print(f"epoch {epoch + 1}/{epochs}  loss {meter.avg:.4f}", flush=True)
    timm.models.save_for_hf(ema.module, "student", safe_serialization=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
