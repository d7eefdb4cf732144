"""From a folder of images to a report, in Python alone.

python tour.py folder:/data/birds runs/tour [--quick]

The folder has train/<class>/*.jpg, and test/<class>/*.jpg to compare on. --quick takes small models
and one epoch, to see that everything works.
"""

import sys

import fgkd

data, output = sys.argv[1:3]
quick = "--quick" in sys.argv
size = {"img_size": 32 if quick else 224}
epochs = 1 if quick else 30

# What is there: classes, and the images of each split.
dataset = fgkd.open_dataset(data)
print(len(dataset.classes), "classes;", {name: len(s) for name, s in dataset.splits.items()})

# A teacher: a timm ConvNeXt, finetuned. One of your own: skip this, and give its place below.
teacher = fgkd.train_teacher(
    data=data,
    model="convnext_atto" if quick else "convnext_base.fb_in22k_ft_in1k",
    pretrained=not quick,
    epochs=epochs,
    output=f"{output}/teacher",
    **size,
)
print("teacher: val top-1", teacher.best["val_top1_pct"])

# Its logits of each epoch's view of every training image. From here on it is not needed.
cache = f"{output}/cache"
fgkd.cache_logits(teacher=str(teacher.path), views=epochs, output=cache)
print("cache:", fgkd.open_cache(cache).num_bytes, "bytes")

# A student from the cache, and the same one on labels alone: what the teacher is worth.
student = {"model": "deit_tiny_patch16_224", "pretrained": not quick, "epochs": epochs, **size}
distilled = fgkd.train_student(cache=cache, output=f"{output}/student", **student)
baseline = fgkd.train_student(
    distillation="none", data=data, views=epochs, output=f"{output}/baseline", **student
)

# One table with intervals and tests, and a page to look at.
runs = [teacher.path, baseline.path, distilled.path]
scores = fgkd.evaluate(runs, split="test", report=f"{output}/report")
print("\n".join(scores.lines()))
print("look at", scores.report)
