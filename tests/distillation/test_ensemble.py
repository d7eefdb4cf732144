"""Several teachers averaged into one target, each asked at its own size and normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.runs import STUDENT, fgkd, rows, tree
from scipy.special import log_softmax, softmax

from fgkd import files
from fgkd.cache.reader import Reader
from fgkd.data.decoding import decode_rgb
from fgkd.views import transforms

OTHER = (
    *("--model", "vit_tiny_patch16_224", "--img-size", 40),
    *("--model-kwargs", "patch_size=8,embed_dim=24,depth=1,num_heads=2"),
)
EXACT = ("--views", 2, "--encoding", "dense32", "--dtype", "float64", "--workers", 0)


@pytest.fixture(scope="module")
def other_teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of 40 px that maps pixels to -1 .. 1, where the ConvNeXt takes ImageNet's mean."""
    run = tmp_path_factory.mktemp("other") / "run"
    fgkd(
        *("train-teacher", "--data", f"folder:{tiny_data}", *OTHER, "--output", run),
        *("--epochs", 2, "--lr", 1e-2, "--batch-size", 16, "--workers", 0, "--color-jitter", 0.3),
    )
    return run


def capture(cache: Path, *teachers: Path, more: tuple[object, ...] = ()) -> Reader:
    given = [part for teacher in teachers for part in ("--teacher", teacher)]
    fgkd("cache-logits", *given, "--output", cache, *EXACT, *more)
    return Reader(cache)


def asked_by_timm(reader: Reader, data: Path, teacher: Path, view: int) -> np.ndarray:
    """float64 [N, K]: a teacher as timm loads it, on views rendered at its size; every 12th."""
    model = timm.create_model(f"local-dir:{teacher}/model", pretrained=True).double().eval()
    config, views = model.pretrained_cfg, reader.identity.views
    images = []
    for key in reader.samples["train"].keys[::12]:
        image = decode_rgb((data / key).read_bytes(), key)
        shape = (image.shape[1], image.shape[0])
        drawn = transforms.params(views.recipe, views.seed, key, view, shape)
        pixels = transforms.render(image, drawn, config["input_size"][-1])
        images.append((pixels / 255 - np.array(config["mean"])) / np.array(config["std"]))
    with torch.no_grad():
        out = model(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    return np.asarray(out.numpy(), np.float64)


def average(how: str, answers: list[np.ndarray]) -> np.ndarray:
    if how == "logits":
        return np.mean(answers, axis=0)
    return np.log(np.mean([softmax(answer, axis=-1) for answer in answers], axis=0))


@pytest.mark.parametrize("size", [None, 24])
@pytest.mark.parametrize("how", ["logits", "probs"])
def test_the_target_is_the_mean_of_what_each_says(
    tiny_data: Path,
    tiny_teacher: Path,
    other_teacher: Path,
    tmp_path: Path,
    how: str,
    size: int | None,
) -> None:
    """Digests are of --img-size, the first teacher's by default; no teacher need have that."""
    teachers = (tiny_teacher, other_teacher)
    more = ("--ensemble", how, *(("--img-size", size) if size else ()))
    reader = capture(tmp_path / "cache", *teachers, more=more)
    for view in range(2):
        answers = [asked_by_timm(reader, tiny_data, teacher, view) for teacher in teachers]
        assert np.abs(answers[0] - answers[1]).max() > 0.1
        held = reader.arrays_of_view(view)
        want = average(how, answers)
        np.testing.assert_allclose(held["logits"][::12], want, rtol=1e-5, atol=1e-5)
    identity = reader.identity
    recipe = identity.views.recipe
    key = reader.samples["train"].keys[0]
    image = decode_rgb((tiny_data / key).read_bytes(), key)
    drawn = transforms.params(recipe, 0, key, 1, (image.shape[1], image.shape[0]))
    assert held["digests"][0] == transforms.pixel_digest(
        transforms.render(image, drawn, size or 32)
    )
    assert identity.views.img_size == (size or 32)
    reader.close()


def test_the_identity_says_which(
    tiny_data: Path, tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    """Architecture, weights, size and normalisation of each, in order, and what was averaged."""
    both = capture(tmp_path / "both", tiny_teacher, other_teacher).identity
    swapped = capture(tmp_path / "swapped", other_teacher, tiny_teacher).identity
    assert both.ensemble == "logits"
    assert both.teachers == swapped.teachers[::-1]
    convnext, vit = both.teachers
    assert (convnext.architecture, convnext.img_size) == ("convnext_atto", 32)
    assert (vit.architecture, vit.img_size) == ("vit_tiny_patch16_224", 40)
    assert vit.mean == vit.std == (0.5, 0.5, 0.5)
    assert convnext.mean == (0.485, 0.456, 0.406)
    for teacher, run in ((convnext, tiny_teacher), (vit, other_teacher)):
        assert teacher.weights_sha256 == files.sha256(run / "model/model.safetensors")


def test_an_ensemble_of_one_is_that_teacher(
    tiny_data: Path, tiny_teacher: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """Named once, whatever it would average; or twice; or as a bare folder of timm's."""
    once = capture(tmp_path / "once", tiny_teacher, more=("--ensemble", "probs"))
    again = capture(tmp_path / "again", tiny_teacher)
    assert tree(tmp_path / "once/shards") == tree(tmp_path / "again/shards")
    assert once.identity.ensemble is None
    twice = capture(tmp_path / "twice", tiny_teacher, tiny_teacher)
    bare = capture(
        tmp_path / "bare",
        tiny_teacher / "model",
        more=("--data", f"folder:{tiny_data}", "--aug-recipe", "light", "--color-jitter", 0.3),
    )
    probs = capture(tmp_path / "probs", tiny_teacher, tiny_teacher, more=("--ensemble", "probs"))
    for view in range(2):
        want = again.arrays_of_view(view)["logits"]
        assert np.array_equal(twice.arrays_of_view(view)["logits"], want)
        assert np.array_equal(bare.arrays_of_view(view)["logits"], want)
        normalised = log_softmax(want.astype(np.float64), axis=1)
        np.testing.assert_allclose(
            probs.arrays_of_view(view)["logits"], normalised, rtol=1e-5, atol=1e-6
        )
    assert np.array_equal(twice.val_logits(), again.val_logits())
    assert bare.identity == again.identity
    for reader in (once, again, twice, bare, probs):
        reader.close()


def test_a_student_of_an_ensemble(tiny_teacher: Path, other_teacher: Path, tmp_path: Path) -> None:
    """Clean validation targets are averaged too; the student trains as from any cache."""
    singles = [
        capture(tmp_path / str(i), teacher).val_logits()
        for i, teacher in enumerate((tiny_teacher, other_teacher))
    ]
    both = capture(tmp_path / "both", tiny_teacher, other_teacher).val_logits()
    np.testing.assert_allclose(both, np.mean(singles, axis=0), rtol=1e-5, atol=1e-6)
    fgkd(
        *("train-student", "--cache", tmp_path / "both", *STUDENT, "--output", tmp_path / "run"),
        *("--epochs", 2, "--batch-size", 16, "--workers", 0, "--temperature", 2),
    )
    assert rows(tmp_path / "run")[1]["distill_loss"] > 1e-3
