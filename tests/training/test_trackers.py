"""`--log-with`: what each tracker's own reader finds of a run, also of one that was resumed."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb
from helpers.errors import expected
from helpers.failures import Fails
from helpers.runs import TEACHER, fgkd, rows, tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fgkd.config import RunSpec
from fgkd.errors import MissingPackage, TrackerError, UnknownName
from fgkd.training import trackers

SHORT = ("--batch-size", 32, "--workers", 0, "--sched", "constant")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")


def trained(data: Path, run: Path, names: str) -> None:
    """Two epochs, and a third after a stop."""
    command = ("train-teacher", "--data", f"folder:{data}", *TEACHER, *SHORT)
    fgkd(*command, "--epochs", 2, "--log-with", names, "--output", run)
    time.sleep(1)  # wandb names a folder by the second, and a run of one replaces the other's
    fgkd("train-teacher", "--resume", "--output", run, "--epochs", 3)


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after a header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def of_wandb(run: Path) -> tuple[list[dict[str, Any]], set[str], dict[str, Any]]:
    """Rows, run ids and options of the offline files."""
    from wandb.proto import wandb_internal_pb2

    found: list[dict[str, Any]] = []
    ids, options = set(), dict[str, Any]()
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                options |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return found, ids, options


def test_wandb_offline(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(tiny_data, run, "wandb")
    found, ids, options = of_wandb(run)
    assert len(ids) == 1  # the resumed run goes on as the same one
    assert options["sched"] == "constant"
    assert [row["_step"] for row in found] == [row["step"] for row in rows(run)]
    for name in ("loss", "lr", "val_top1_pct"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in rows(run)])


def test_mlflow(tiny_data: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = tmp_path / "run"
    trained(tiny_data, run, "mlflow")
    client = MlflowClient(f"file:{tmp_path / 'mlruns'}")
    experiment = client.get_experiment_by_name("fgkd")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run"
    assert found.data.params["sched"] == "constant"
    for name in ("loss", "lr", "val_top1_pct"):
        points = client.get_metric_history(found.info.run_id, name)
        assert [point.step for point in points] == [row["step"] for row in rows(run)]
        assert [p.value for p in points] == pytest.approx([row[name] for row in rows(run)])


def test_several_trackers_change_nothing_else(tiny_data: Path, tmp_path: Path) -> None:
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *SHORT, "--epochs", 1)
    fgkd(*command, "--log-with", "tensorboard,mlflow", "--output", tmp_path / "a")
    fgkd(*command, "--output", tmp_path / "b")
    with_logs, without = tree(tmp_path / "a"), tree(tmp_path / "b")
    same = [n for n in without if n.startswith("model/") or n in ("metrics.jsonl", "summary.csv")]
    assert all(with_logs[name] == without[name] for name in same)
    assert list((tmp_path / "a" / "tensorboard").iterdir())


def test_an_unknown_tracker_and_one_that_is_not_installed(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Fails,
) -> None:
    with expected(UnknownName, option="log_with", value="wandbb"):
        trackers.names_of(RunSpec(log_with="tensorboard,wandbb"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER)
    for name in trackers.TRACKERS:
        said = fails(*command, "--log-with", name, "--output", tmp_path / "run")
        assert isinstance(said.error, MissingPackage)
        assert said.remedy.startswith("pip install")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_cannot_be_started(
    name: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    """wandb without a key, and mlflow without a server; the run goes on from there."""
    run, command = tmp_path / "run", ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER)
    more = (*SHORT, "--log-with", f"tensorboard,{name}", "--epochs", 1, "--output", run)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "online")
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("NETRC", str(tmp_path / "netrc"))
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        wandb.teardown()  # its mode is read once in a process
        failure = fails(*command, *more)
        wandb.teardown()
    assert isinstance(failure.error, TrackerError)
    assert failure.error.tracker == name
    assert failure.error.reason in failure
    assert {"wandb": "wandb login", "mlflow": "MLFLOW_TRACKING_URI="}[name] in failure.remedy
    fgkd(*command, *more, "--resume")
    assert len(rows(run)) == 1


@pytest.mark.parametrize("fails_at", ["add", "close"])
def test_one_that_fails_later_ends_no_training(
    fails_at: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Flaky:
        def __init__(self, *_: object) -> None: ...

        def add(self, row: Mapping[str, float]) -> None:
            asked.append("add")
            if fails_at == "add" and row["epoch"] == 2:
                raise ConnectionError("the server is gone")

        def close(self) -> None:
            asked.append("close")
            raise ConnectionError("the server is gone")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", (Flaky, "wandb"))
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *SHORT, "--epochs", 3)
    fgkd(*command, "--output", tmp_path / "a")
    fgkd(*command, "--output", tmp_path / "b", "--log-with", "wandb,tensorboard")
    assert asked == {"add": ["add", "add"], "close": ["add", "add", "add", "close"]}[fails_at]
    assert (tmp_path / "b" / "log.txt").read_text().count("the server is gone") == 1
    assert rows(tmp_path / "b") == rows(tmp_path / "a")
    weights = "model/model.safetensors"
    assert (tmp_path / "b" / weights).read_bytes() == (tmp_path / "a" / weights).read_bytes()
    events = EventAccumulator(str(tmp_path / "b" / "tensorboard")).Reload()
    assert len(events.Scalars("loss")) == 3  # the other tracker goes on
