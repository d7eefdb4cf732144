"""A plain torch training loop on cached targets: python plain_torch.py CACHE [EPOCHS]"""

import sys

import timm
import torch
from torch.utils.data import DataLoader

import fgkd


def main(cache: str, epochs: int = 30, model: str = "resnet10t") -> None:
    """Train a timm model from scratch on a cache's views; CACHE may also be a URL."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = fgkd.CachedViews(fgkd.open_cache(cache))
    loader = DataLoader(views, 64, shuffle=True, num_workers=2, persistent_workers=True)
    student = timm.create_model(model, num_classes=len(views.classes)).to(device)
    config = timm.data.resolve_model_data_config(student)
    mean, std = (
        torch.tensor(config[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std")
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05)
    for epoch in range(epochs):
        views.set_epoch(epoch)  # the cache's view number epoch mod V, in the workers too
        total, images = 0.0, 0
        for batch in loader:
            targets = {
                "labels": batch["label"].to(device),
                # only of a cache with mixup or cutmix
                "partner_labels": batch["partner_label"].to(device) if "lam" in batch else None,
                "lam": batch["lam"].to(device) if "lam" in batch else None,
            }
            logits = student((batch["image"].to(device) / 255 - mean) / std)
            distill = fgkd.losses.kl(
                student_logits=logits,
                teacher_logits=batch["teacher_logits"].to(device),
                temperature=2.0,
            )
            loss = fgkd.losses.task_loss(logits=logits, **targets) + distill
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, images = total + loss.item() * len(logits), images + len(logits)
        print(f"epoch {epoch + 1}/{epochs}  loss {total / images:.4f}", flush=True)
    torch.save(student.state_dict(), "student.pth")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
