"""The model card of a trained model: model/README.md, as the Hugging Face hub shows it.

Its front matter is made by huggingface_hub (a package that timm needs).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from fgkd import config
from fgkd.config import TrainStudentConfig, TrainTeacherConfig
from fgkd.data import Dataset
from fgkd.models import Classifier
from fgkd.training import run_folder

NAME = "README.md"


def card(
    run: Path,
    options: TrainTeacherConfig | TrainStudentConfig,
    model: Classifier,
    dataset: Dataset,
    best: Mapping[str, float],
    teacher: str,
) -> str:
    """The text of a model card. It holds no path and no time: equal runs have equal ones."""
    from huggingface_hub import EvalResult, ModelCardData

    facts = run_folder.read(run)
    num_val = len(dataset.splits.get("val", ()))
    scores = [
        (title, best[name], wilson_ci95(best[name], num_val))
        for title, name in (("Top-1 accuracy", "val_top1_pct"), ("Top-5 accuracy", "val_top5_pct"))
        if name in best
    ]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset.name,
            dataset_name=dataset.name,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=title,
            metric_value=round(value, 2),
        )
        for title, value, _ in scores
    ]
    name = f"{model.architecture} for {dataset.name}"
    head = ModelCardData(
        license=options.run.license,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "fgkd", "knowledge-distillation"],
        model_name=name,
        eval_results=results or None,
        ignore_metadata_errors=False,
    )
    counts = ", ".join(f"{len(samples):,} {split}" for split, samples in dataset.splits.items())
    size = model.input_size[-1]
    rows = [
        ("Architecture", f"{model.architecture}, {_millions(model):.2f} M parameters, {size} px"),
        ("Data", f"{dataset.name}: {len(dataset.classes):,} classes; {counts} images"),
        ("Teacher", teacher),
        ("Trained by", f"fgkd {facts.stage}"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in facts.versions.items())),
        ("Licence", options.run.license),
    ]
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    return f"""---
{head.to_yaml()}
---

# {name}

| | |
|---|---|
{table}

## Results

{_results(scores, num_val)}

## Use

```python
import timm
model = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image).unsqueeze(0))  # image: a PIL image in RGB
classes = model.pretrained_cfg["label_names"]
```

## Recipe

`fgkd {facts.stage}` with these options (a file of its option `config`), its data and output:

```yaml
{recipe(options)}
```
"""


def wilson_ci95(percent: float, num: int) -> tuple[float, float]:
    """95 % interval of a share of `num` images, in percent. Wilson 1927, as SciPy computes it."""
    from scipy.stats import binomtest

    if not num:
        return 0.0, 100.0
    found = binomtest(round(percent / 100 * num), num).proportion_ci(0.95, method="wilson")
    return 100 * found.low, 100 * found.high


def recipe(options: TrainTeacherConfig | TrainStudentConfig) -> str:
    """The options that differ from their defaults, as YAML; without those of one's own machine."""
    found = {}
    for name, leaf in config.leaves(type(options)).items():
        value = leaf.of(options)
        if value != leaf.field.default and not leaf.field.metadata["free"]:
            found[name] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip()


def _results(scores: list[tuple[str, float, tuple[float, float]]], num_val: int) -> str:
    if not scores:
        return "There was no validation split."
    lines = [f"On {num_val:,} validation images, by which the epoch was chosen:", ""]
    lines += ["| metric | % | 95 % interval (Wilson) |", "|---|---|---|"]
    lines += [f"| {t} | {v:.2f} | {low:.2f} to {high:.2f} |" for t, v, (low, high) in scores]
    return "\n".join(lines)


def _millions(model: Classifier) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6
