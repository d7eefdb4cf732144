"""A cache from a torchvision teacher: python capture_torchvision.py DATA WEIGHTS OUTPUT

DATA is a dataset as for the commands, as folder:/data/birds; WEIGHTS a .pth of its state dict.
"""

import sys

import torch
import torchvision

import fgkd
from fgkd.progress import Progress


class Printed(Progress):
    """Prints what is reported."""

    def message(self, line: str) -> None:
        print(line, flush=True)


def main(data: str, weights: str, output: str, name: str = "mobilenet_v3_small") -> None:
    """Write the model's logits for 4 views of every training image."""
    dataset = fgkd.open_dataset(data)
    net = torchvision.models.get_model(name, num_classes=len(dataset.classes))
    net.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    # Normalisation is ImageNet's by default; the classes are the model's, by index of its logits.
    teacher = fgkd.as_classifier(net, name=name, classes=dataset.classes, input_size=224)
    found = fgkd.capture(
        teacher,
        dataset=dataset,
        views=4,
        output=output,
        aug_recipe="light",
        img_size=64,  # small for a quick try; leave it out for the teacher's own size
        progress=Printed(),
    )
    print(f"{found.views} views, {found.num_bytes:,} bytes in {found.path}")
    train = fgkd.inspect(output)[0].summary.teacher
    print(f"the teacher's top-1 on these views: {train.top1_pct:.2f} %")


if __name__ == "__main__":
    main(*sys.argv[1:4])
