"""`fgkd.CachedViews`, the dataset for any training loop, against what train-student sees."""

from __future__ import annotations

import gc
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import fgkd
from helpers.shard_server import serve
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fgkd import CachedViews, open_cache, open_dataset
from fgkd.cache.reader import Reader
from fgkd.errors import ContentMismatch, DamagedShard, DataMismatch, OptionError, PixelMismatch
from fgkd.loading import schedule
from fgkd.loading.cached_data import cached_data
from fgkd.loading.train_loader import TrainLoader
from fgkd.views.view_set import ViewSet

NUM, VIEWS, BLOCK = 97, 2, 20


@pytest.fixture(scope="module")
def caches(
    tiny_teacher: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Plain, mixed, and top-k targets in tars with their images."""
    root = tmp_path_factory.mktemp("caches")
    make = ("cache-logits", "--teacher", tiny_teacher, "--views", VIEWS, "--shard-size", BLOCK)
    mixed = ("--mixup", 0.8, "--cutmix", 1.0, "--encoding", "dense32")
    fgkd(*make, "--output", root / "mixed", *mixed, "--workers", 0)
    topk = ("--format", "webdataset", "--encoding", "topk", "--top-k", 3, "--temperatures", "1,2")
    fgkd(*make, "--output", root / "topk", *topk, "--workers", 0)
    return {"plain": tiny_cache, "mixed": root / "mixed", "topk": root / "topk"}


def seen_by_train_student(cache: Path, epochs: int, **options: Any) -> dict[tuple[int, str], Any]:
    """(epoch, key) -> image [3, H, W], label, logits, partner's label and lam of the own loader."""
    reader = open_cache(cache)
    samples = cached_data(reader)[1].splits["train"]
    views = ViewSet.of(reader.identity.views, samples, BLOCK, reader.unreadable_keys)
    steps = schedule.Schedule(1, len(samples), 16, epochs, VIEWS)
    found = {}
    key_of = dict(enumerate(samples.keys))
    for batch in TrainLoader(views, steps, cache=reader, **options).batches(0):
        for i, row in enumerate(batch.spec.rows.tolist()):
            assert batch.teacher_BK is not None
            one = [batch.image_u8_BHW3[i].permute(2, 0, 1), batch.labels_B[i], batch.teacher_BK[i]]
            if batch.partner_labels_B is not None and batch.lam_B is not None:
                one += [batch.partner_labels_B[i], batch.lam_B[i]]
            found[batch.spec.epoch, key_of[row]] = one
    return found


def assert_as_seen(item: dict[str, Any], wanted: list[torch.Tensor]) -> None:
    assert item["image"].dtype == torch.uint8
    assert item["teacher_logits"].dtype == torch.float32
    assert torch.equal(item["image"], wanted[0])
    assert item["label"] == int(wanted[1])
    assert torch.equal(item["teacher_logits"], wanted[2])
    assert ("lam" in item) == (len(wanted) == 5)
    if len(wanted) == 5:
        assert (item["partner_label"], item["lam"]) == (int(wanted[3]), pytest.approx(wanted[4]))


@pytest.mark.parametrize("name", ["plain", "mixed", "topk"])
def test_items_are_what_train_student_sees(name: str, caches: dict[str, Path]) -> None:
    """Pixel for pixel and logit for logit, in every epoch."""
    at = {"temperature": 2.0} if name == "topk" else {}
    seen = seen_by_train_student(caches[name], 3, **at)
    assert len(seen) == 3 * NUM
    views = CachedViews(caches[name], **at)
    assert len(views) == NUM
    for epoch in range(3):
        views.set_epoch(epoch)
        for i in range(NUM):
            item = views[i]
            assert_as_seen(item, seen[epoch, item["key"]])
    if name == "mixed":
        assert any(item["lam"] < 1 for item in (views[i] for i in range(NUM)))


@pytest.mark.parametrize(
    ("workers", "start"), [(0, None), (2, "fork"), (2, "forkserver"), (2, "spawn")]
)
def test_any_dataloader(workers: int, start: str | None, caches: dict[str, Path]) -> None:
    """Collated batches, for any number of workers and way to start them; epochs reach them."""
    views = CachedViews(caches["mixed"])
    own = [views_of_epoch(views, epoch) for epoch in range(VIEWS)]
    loader = DataLoader(
        views,
        batch_size=16,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=start,
        persistent_workers=workers > 0,
    )
    for epoch in (0, 1, 2):
        views.set_epoch(epoch)
        keys = []
        for batch in loader:
            keys += batch["key"]
            assert batch["image"].shape[1:] == (3, 32, 32)
            assert batch["teacher_logits"].shape == (len(batch["key"]), 8)
            for i, key in enumerate(batch["key"]):
                assert torch.equal(batch["image"][i], own[epoch % VIEWS][key]["image"])
                logits = own[epoch % VIEWS][key]["teacher_logits"]
                assert torch.equal(batch["teacher_logits"][i], logits)
        assert len(keys) == len(set(keys)) == NUM
    assert not torch.equal(own[0][keys[0]]["image"], own[1][keys[0]]["image"])


def views_of_epoch(views: CachedViews, epoch: int) -> dict[str, dict[str, Any]]:
    views.set_epoch(epoch)
    return {item["key"]: item for item in map(views.__getitem__, range(len(views)))}


class Inverted(Dataset[Any]):
    """A user's wrapper that changes the images of a batch, or the order of its items."""

    def __init__(self, views: CachedViews, reverse: bool) -> None:
        self.views, self.reverse = views, reverse

    def __len__(self) -> int:
        return len(self.views)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        items = self.views.__getitems__(indices)
        if self.reverse:
            return items[::-1]
        for item in items:
            item["image"] = 255 - item["image"]
        return items


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_of_the_items_as_they_are(workers: int, caches: dict[str, Path]) -> None:
    """The shared memory of a batch serves only items that nobody has changed or moved."""
    views = CachedViews(caches["plain"])
    plain = next(iter(DataLoader(views, 8, num_workers=workers)))
    loader = DataLoader(Inverted(views, False), 8, num_workers=workers)
    assert torch.equal(next(iter(loader))["image"], 255 - plain["image"])
    loader = DataLoader(Inverted(views, True), 8, num_workers=workers)
    turned = next(iter(loader))
    assert torch.equal(turned["image"], plain["image"].flip(0))
    assert turned["key"] == plain["key"][::-1]


def test_distributed_sampler_shares_the_images(caches: dict[str, Path]) -> None:
    views = CachedViews(caches["plain"])
    keys = []
    for rank in range(2):
        sampler: Any = DistributedSampler(views, num_replicas=2, rank=rank, shuffle=True)
        for batch in DataLoader(views, batch_size=8, sampler=sampler):
            keys += batch["key"]
    assert len(keys) == 98  # one twice, as DistributedSampler pads
    assert len(set(keys)) == NUM


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_behind_a_url(workers: int, caches: dict[str, Path]) -> None:
    """Images and targets come with the shards, each downloaded once for all workers."""
    seen = seen_by_train_student(caches["topk"], 1, temperature=1.0)
    with serve(caches["topk"]) as (url, asked):
        views = CachedViews(url, temperature=1.0)
        for batch in DataLoader(views, batch_size=8, shuffle=True, num_workers=workers):
            for i, key in enumerate(batch["key"]):
                assert torch.equal(batch["image"][i], seen[0, key][0])
                assert torch.equal(batch["teacher_logits"][i], seen[0, key][2])
        shards = {name: count for name, count in asked.items() if name.startswith("shards/")}
        assert len(shards) == 5
        assert set(shards.values()) == {1}
        folder = views._original.folder
        assert folder.exists()
        del views
        gc.collect()
        assert not folder.exists()


def test_index_and_length(caches: dict[str, Path]) -> None:
    views = CachedViews(caches["plain"])
    assert views[-1]["key"] == views[NUM - 1]["key"]
    assert views[np.int64(3)]["key"] == views[3]["key"]
    with pytest.raises(IndexError):
        views[NUM]
    assert len(list(views)) == NUM  # iteration ends


def test_fractions_are_refused(caches: dict[str, Path]) -> None:
    """Hugging Face's state.epoch is one: cut off, 0.99 would show the first view twice."""
    views = CachedViews(caches["plain"])
    views.set_epoch(np.int64(1))
    for fraction in (0.99, 1.0, torch.tensor(0.5), "1", None):
        with pytest.raises(TypeError):
            views.set_epoch(fraction)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            views[fraction]  # type: ignore[index]
    assert views.view == 1


def test_arguments_that_cannot_work_are_refused(caches: dict[str, Path], tiny_data: Path) -> None:
    reader = open_cache(caches["plain"])
    for size in (0, -1):
        with pytest.raises(ValueError, match=str(size)):
            CachedViews(reader, size=size)
    for size in (32.5, "32", (32, 32)):
        with pytest.raises(TypeError):
            CachedViews(reader, size=size)  # type: ignore[arg-type]
    for temperature in (0, -1.0, math.nan, math.inf, "2"):  # of `dense` targets, too
        with pytest.raises(OptionError) as refused:
            CachedViews(reader, temperature=temperature)  # type: ignore[arg-type]
        assert refused.value.option == "temperature"
    for fraction in (-0.1, 1, 2.0, math.nan, "0.1"):
        with pytest.raises(OptionError) as refused:
            open_dataset(f"folder:{tiny_data}", fraction)  # type: ignore[arg-type]
        assert refused.value.option == "val_fraction"


def test_another_size_shows_the_same_crops(caches: dict[str, Path]) -> None:
    small, large = CachedViews(caches["plain"]), CachedViews(caches["plain"], size=64)
    image = large[5]["image"]
    assert image.shape == (3, 64, 64)
    shrunk = torch.nn.functional.avg_pool2d(image.float(), 2)
    assert (shrunk - small[5]["image"].float()).abs().mean() < 16
    assert torch.equal(large[5]["teacher_logits"], small[5]["teacher_logits"])


def test_topk_targets_have_the_exact_tail(caches: dict[str, Path]) -> None:
    """The mass of what was not kept, at each temperature that is stored; others are refused."""
    kept = {}
    for t in (1.0, 2.0):
        logits_BC = torch.stack([CachedViews(caches["topk"], temperature=t)[3]["teacher_logits"]])
        p_C = (logits_BC / t).softmax(1)[0].double()
        assert float(p_C.sum()) == pytest.approx(1)
        kept[t] = float(p_C.topk(3).values.sum())
    assert kept[1.0] > kept[2.0]
    for t in (None, 3.0):
        with pytest.raises(OptionError) as caught:
            CachedViews(caches["topk"], temperature=t)
        assert (caught.value.option, caught.value.suggestion) == ("temperature", 2.0)


def test_other_data_are_refused(caches: dict[str, Path], tiny_data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_data, moved)
    spec = f"folder:{moved}"
    same = CachedViews(caches["plain"], spec)
    opened = CachedViews(caches["plain"], open_dataset([spec]))
    assert torch.equal(same[0]["image"], CachedViews(caches["plain"])[0]["image"])
    assert torch.equal(opened[0]["image"], same[0]["image"])
    image = next(p for p in (moved / "train").rglob("*.png") if p.name == "03.png")
    original = image.read_bytes()
    image.write_bytes(original[:-1] + b"\x00")  # its size stays
    changed = CachedViews(caches["plain"], spec)
    key = image.relative_to(moved).as_posix()
    with pytest.raises(ContentMismatch) as mismatch:
        list(changed)
    assert mismatch.value.key == key
    image.unlink()
    with pytest.raises(DataMismatch) as missing:
        CachedViews(caches["plain"], spec)
    assert missing.value.subject == "data"


def test_pixels_that_the_teacher_did_not_see_are_refused(
    caches: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgkd.views import transforms

    real = transforms.render
    monkeypatch.setattr(transforms, "render", lambda *args: 255 - real(*args))
    with pytest.raises(PixelMismatch) as caught:
        CachedViews(caches["plain"])[0]
    assert caught.value.view == 0


@pytest.mark.parametrize("name", ["plain", "topk"])
def test_a_damaged_shard_is_named(name: str, caches: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(caches[name], cache)
    shard = sorted((cache / "shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedShard) as caught:
        list(CachedViews(cache, temperature=1.0))
    assert caught.value.path == shard
    if name == "plain":  # tars are read at once, for the images
        views = CachedViews(cache)
        with pytest.raises(RuntimeError, match=shard.name):  # how torch hands on a worker's error
            list(DataLoader(views, num_workers=1))


def test_targets_by_row_are_those_of_the_whole_view(caches: dict[str, Path]) -> None:
    for name in ("plain", "topk"):
        reader = Reader(caches[name])
        rows = np.array([96, 0, 5, 5, 40])
        held = reader.arrays_of_view(1)
        whole = reader.decode({k: v for k, v in held.items() if k != "digests"}, 1.0)
        assert np.array_equal(reader.targets(rows, 1, 1.0), whole[rows])
        assert np.array_equal(reader.stored(rows, 1, ["digests"])["digests"], held["digests"][rows])
        with pytest.raises(IndexError):
            reader.targets(np.array([NUM]), 1, 1.0)
