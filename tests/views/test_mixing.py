"""Mixup and cutmix under a cache: the teacher sees the mixed pixels, the student the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.failures import Fails
from helpers.runs import (
    STUDENT,
    TEACHER,
    assert_same,
    assert_same_run,
    fgkd,
    model_files,
    rows,
    run_ranks,
    saved,
)

from fgkd.cache.reader import Reader
from fgkd.data import open_dataset
from fgkd.data.decoding import decode_rgb
from fgkd.distillation.step import label_step
from fgkd.errors import OptionError
from fgkd.loading import schedule
from fgkd.loading.batch import Batch
from fgkd.loading.train_loader import TrainLoader
from fgkd.models import Logits
from fgkd.views import mixing, orders, transforms
from fgkd.views.view_set import ViewSet

MIX = ("--mixup", 0.8, "--cutmix", 1.0)
BLOCK, SIZE = 20, 32  # 97 images: four blocks of 20 and one of 17, whose last has no partner
EXACT = ("--encoding", "dense32", "--dtype", "float64", "--shard-size", BLOCK, "--workers", 0)


@pytest.fixture(scope="module")
def cache(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "cache"
    fgkd("cache-logits", "--teacher", tiny_teacher, "--output", folder, "--views", 2, *EXACT, *MIX)
    return folder


def train(output: Path, *more: object) -> Path:
    """3 epochs x 7 steps, whose last batch is the one image without a partner."""
    fgkd(
        *("train-student", *STUDENT, "--output", output, "--workers", 0, "--epochs", 3),
        *("--batch-size", 16, "--drop-path", 0.2, "--temperature", 2, *more),
    )
    assert saved(output)["step"] == 21
    return output


def make_loader(cache: Path, tiny_data: Path, batch_size: int, **more: Any) -> TrainLoader:
    reader = Reader(cache)
    samples = open_dataset([f"folder:{tiny_data}"], 0.1).splits["train"]
    views = ViewSet.of(reader.identity.views, samples, BLOCK, reader.unreadable_keys)
    steps = schedule.Schedule(0, len(samples), batch_size, 2, 2)
    return TrainLoader(views, steps, **{"cache": reader} | more)


@pytest.fixture(scope="module")
def batches(cache: Path, tiny_data: Path) -> list[Batch]:
    return list(make_loader(cache, tiny_data, 8).batches(0))


# ---- offline == online -----------------------------------------------------------------------


def test_a_mixed_student_of_the_cache_is_bit_equal_to_one_of_the_live_teacher(
    tiny_teacher: Path, cache: Path, tmp_path: Path
) -> None:
    offline = train(tmp_path / "offline", "--cache", cache)
    live = ("--teacher", tiny_teacher, "--views", 2, "--dtype", "float64", "--shard-size", BLOCK)
    online = train(tmp_path / "online", *live, *MIX)
    assert_same(saved(offline), saved(online))
    assert model_files(offline) == model_files(online)
    assert (offline / "metrics.jsonl").read_bytes() == (online / "metrics.jsonl").read_bytes()
    assert all(row["distill_loss"] > 1e-2 for row in rows(offline))
    plain = train(tmp_path / "plain", *live)
    assert model_files(plain) != model_files(online)  # mixing does something


def test_a_teacher_s_own_mixing_is_inherited(tiny_data: Path, tmp_path: Path) -> None:
    """By the cache and by the live twin, with no option repeated."""
    teacher, cache = tmp_path / "teacher", tmp_path / "cache"
    fgkd(
        *("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--output", teacher, *MIX),
        *("--epochs", 1, "--lr", 1e-2, "--batch-size", 16, "--workers", 0),
    )
    fgkd("cache-logits", "--teacher", teacher, "--output", cache, "--views", 2, *EXACT)
    recipe = Reader(cache).identity.views.recipe.to_dict()
    assert (recipe["mixup"], recipe["cutmix"]) == (0.8, 1.0)
    offline = train(tmp_path / "offline", "--cache", cache, "--kd-loss", "dkd")
    online = train(
        tmp_path / "online",
        *("--teacher", teacher, "--views", 2, "--dtype", "float64", "--shard-size", BLOCK),
        *("--kd-loss", "dkd"),
    )
    assert_same(saved(offline), saved(online))


def test_two_formats_and_shard_order_hold_for_pairs(
    tiny_teacher: Path, cache: Path, tmp_path: Path
) -> None:
    wds = tmp_path / "wds"
    command = ("cache-logits", "--teacher", tiny_teacher, "--output", wds, "--views", 2)
    fgkd(*command, *EXACT, *MIX, "--format", "webdataset")
    for name, more in {"sample": (), "shard": ("--order", "shard", "--shard-buffer", 2)}.items():
        a = train(tmp_path / f"hdf5-{name}", "--cache", cache, *more)
        b = train(tmp_path / f"wds-{name}", "--cache", wds, *more)
        assert_same_run(a, b)


# ---- pixels ----------------------------------------------------------------------------------


def mixed_by_hand(reader: Reader, data: Path, row: int, view: int) -> tuple[np.ndarray, Any]:
    """The pixels of a view from the plan, the views and the files alone; and how it was mixed."""
    recipe = reader.identity.views.recipe
    seed, keys = reader.identity.views.seed, reader.samples["train"].keys
    partner = int(orders.partners(seed, view, orders.blocks(seed, len(keys), BLOCK))[row])

    def one(i: int) -> np.ndarray:
        image = decode_rgb((data / keys[i]).read_bytes(), keys[i])
        shape = (image.shape[1], image.shape[0])
        return transforms.render(image, transforms.params(recipe, seed, keys[i], view, shape), SIZE)

    if partner == row:
        return one(row), (row, 1.0, (0, 0, 0, 0))
    both = "\n".join(sorted((keys[row], keys[partner])))
    drawn = mixing.mix_params(recipe, seed, both, view, SIZE)
    assert drawn is not None
    return mixing.mix(one(row), one(partner), drawn), (partner, drawn.lam, drawn.box or (0,) * 4)


def test_the_cache_holds_the_digests_of_independently_mixed_pixels(
    cache: Path, tiny_data: Path
) -> None:
    """And partner, share and box of each; and the teacher's answers are to these pixels."""
    reader = Reader(cache)
    row_of = {key: i for i, key in enumerate(reader.samples["train"].keys)}
    loners, pasted = 0, 0
    for path in sorted(cache.glob("shards/*.h5")):
        with h5py.File(path) as file:
            keys = [key.decode() for key in file["keys"][:]]
            arrays = {name: file[name][:] for name in file if name != "keys"}
        for at in np.ndindex(2, len(keys)):
            row = row_of[keys[at[1]]]
            pixels, (partner, lam, box) = mixed_by_hand(reader, tiny_data, row, at[0])
            assert arrays["digests"][at] == transforms.pixel_digest(pixels)
            assert arrays["partners"][at] == partner
            assert arrays["lams"][at] == np.float32(lam)
            assert arrays["boxes"][at].tolist() == list(box)
            loners, pasted = loners + (partner == row), pasted + (box[2] > 0)
    assert loners == 2  # one per view, of the odd block
    assert 40 < pasted < 150  # of 194; the rest are blended
    reader.close()


def test_the_teacher_saw_the_mixed_pixels(tiny_teacher: Path, cache: Path, tiny_data: Path) -> None:
    """timm alone, on pixels mixed by hand, gives the stored logits."""
    reader = Reader(cache)
    model = timm.create_model(f"local-dir:{tiny_teacher}/model", pretrained=True).double().eval()
    config = model.pretrained_cfg
    for view in range(2):
        asked = range(view, 97, 8)
        stored = reader.arrays_of_view(view)["logits"][list(asked)]
        pixels = np.stack([mixed_by_hand(reader, tiny_data, row, view)[0] for row in asked])
        images = (pixels / 255 - np.array(config["mean"])) / np.array(config["std"])
        with torch.no_grad():
            logits = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        np.testing.assert_allclose(stored, logits.numpy(), rtol=1e-5, atol=1e-5)
    reader.close()


@pytest.mark.parametrize("batch_size", [4, 16, 98])
def test_any_even_batch_size_replays_the_same_views(
    cache: Path, tiny_data: Path, batches: list[Batch], batch_size: int
) -> None:
    def seen(batches: list[Batch]) -> dict[tuple[int, int], tuple[bytes, bytes, int, float]]:
        return {
            (int(b.row_ids[i]), b.spec.view): (
                b.image_u8_BHW3[i].numpy().tobytes(),
                b.teacher_BK[i].numpy().tobytes(),
                int(b.partner_labels_B[i]),
                float(b.lam_B[i]),
            )
            for b in batches
            for i in range(b.count)
        }

    others = make_loader(cache, tiny_data, batch_size).batches(0)
    assert seen(list(others)) == (want := seen(batches))
    assert len(want) == 2 * 97


# ---- pairs and labels ------------------------------------------------------------------------


def test_pairs_are_side_by_side_in_a_batch(cache: Path, batches: list[Batch]) -> None:
    reader = Reader(cache)
    blocks = orders.blocks(reader.identity.views.seed, 97, BLOCK)
    block_of = {int(row): i for i, rows in enumerate(blocks) for row in rows}
    labels = reader.samples["train"].labels
    for batch in batches:
        partner = orders.partners(reader.identity.views.seed, batch.spec.view, blocks)
        assert np.array_equal(partner[partner], np.arange(97))
        order = batch.spec.rows
        assert set(partner[order].tolist()) == set(order.tolist())
        assert all(block_of[int(row)] == block_of[int(partner[row])] for row in order)
        assert batch.labels_B.tolist() == [labels[row] for row in order]
        assert batch.partner_labels_B.tolist() == [labels[partner[row]] for row in order]
    assert [b.count for b in batches] == 2 * ([8] * 12 + [1])
    assert batches[12].lam_B.tolist() == [1.0]  # the loner is itself


def test_both_labels_enter_the_task_loss(batches: list[Batch]) -> None:
    """The step of train-student against a cross entropy to the mixed one-hot target."""
    step = label_step(0.1)
    for batch in batches[:3]:
        head = torch.randn(batch.count, 8, generator=torch.Generator().manual_seed(1))
        got = step(lambda images, head=head: Logits(head), batch)["loss"]  # type: ignore[arg-type]
        one, two = (F.one_hot(y, 8) for y in (batch.labels_B, batch.partner_labels_B))
        lam = batch.lam_B[:, None]
        target = 0.9 * (lam * one + (1 - lam) * two) + 0.1 / 8
        assert (lam < 1).any()
        assert (batch.labels_B != batch.partner_labels_B).any()
        torch.testing.assert_close(got, F.cross_entropy(head, target))


@pytest.mark.parametrize(("given", "hint"), [(15, 14), (1, 2)])
def test_an_odd_batch_is_refused(
    cache: Path, tmp_path: Path, fails: Fails, given: int, hint: int
) -> None:
    command = ("train-student", "--cache", cache, *STUDENT, "--output", tmp_path / "run")
    said = fails(*command, "--batch-size", given)
    assert f"batch_size {given} is not even" in said
    assert f"Try: --batch-size {hint}\n" in said


# ---- ranks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_keep_pairs_together(
    world: int, cache: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their batches are the parts of the one global batch, cut between pairs."""
    whole = list(make_loader(cache, tiny_data, 12).batches(0))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    parts = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(list(make_loader(cache, tiny_data, 12).batches(0)))
    for step, batch in enumerate(whole):
        mine = [part[step] for part in parts]
        images = torch.cat([part.image_u8_BHW3[: part.count] for part in mine])
        assert torch.equal(images, batch.image_u8_BHW3)
        if batch.count == 12:
            assert all(part.count % 2 == 0 and part.count for part in mine)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError) as caught:
        make_loader(cache, tiny_data, 14)
    assert (caught.value.option, caught.value.suggestion) == ("batch_size", 12)


def test_two_processes_train_on_pairs_as_one(cache: Path, tmp_path: Path) -> None:
    more = ("--opt", "sgd", "--lr", 0.05, "--cache", cache)
    one = train(tmp_path / "one", *more)
    run_ranks(
        *(2, "train-student", *STUDENT, "--output", tmp_path / "two", "--workers", 0),
        *("--epochs", 3, "--batch-size", 16, "--drop-path", 0.2, "--temperature", 2, *more),
    )
    for name, value in saved(one)["model"].items():
        got = saved(tmp_path / "two")["model"][name]
        torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-5, msg=name)
