"""The `Try:` line of an error: what to do about it on the command line, from its type and facts."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgkd import config, errors
from fgkd.config.schema import Leaf
from fgkd.download import is_busy
from fgkd.errors import quoted
from fgkd.files import is_url

SHOWN = 8  # names of a registry that are listed
HF_HUB, HF_URL, TRANSFORMERS = "hf-hub:", "hf://", "transformers:"
CONFIGS = (
    config.TrainTeacherConfig,
    config.CacheLogitsConfig,
    config.TrainStudentConfig,
    config.EvaluateConfig,
    config.InspectConfig,
    config.PredictConfig,
    config.ExportConfig,
)


def flag(option: str) -> str:
    """The command-line form of an option's name; arguments stay as they are."""
    return option if option.isupper() else "--" + option.replace("_", "-")


def remedy(error: errors.FgkdError) -> str:
    """A line to paste or follow; "" where the message says it all."""
    for kind in type(error).__mro__:
        if kind in REMEDIES:
            return REMEDIES[kind](error)
    return ""


def explain(error: errors.FgkdError) -> str:
    """The error's message and, below it, the remedy."""
    found = remedy(error)
    return f"{error.message}\nTry: {found}" if found else error.message


# Options


def _option(error: errors.OptionError) -> str:
    if error.path is not None:
        return _line_of(error)
    use = _use(error.option, error.suggestion)
    return f"{use}, or {error.advice}" if error.advice else use


def _unused(error: errors.UnusedOption) -> str:
    return f"{_option(error)}, or {_use(*error.needs)}" if error.needs else _option(error)


def _use(option: str, value: Any) -> str:
    """How an option gets a value on the command line."""
    name, leaf = flag(option), _leaf(option)
    if value is None or (value is False and not _has_negation(option)):
        return f"leave {name} out"
    if isinstance(value, bool):
        return name if value else f"--no-{name.removeprefix('--')}"
    if isinstance(value, tuple | list):
        if leaf and leaf.kind == tuple[float, ...]:
            return f"{name} {','.join(map(str, value))}"
        if leaf and leaf.kind == tuple[str, ...]:
            return " ".join(f"{name} {quoted(one)}" for one in value)
        return " ".join([name, *map(quoted, value)])
    return f"{name} {quoted(value)}" if name.startswith("--") else str(value)


def _leaf(option: str) -> Leaf | None:
    """The declaration of an option; it is the same in every command that has it."""
    found = (config.leaves(cls).get(option) for cls in CONFIGS)
    return next((leaf for leaf in found if leaf), None)


def _line_of(error: errors.OptionError) -> str:
    """Where a file of options gives one; names are written there with dashes or underscores."""
    pattern = re.escape(error.option).replace("_", "[-_]")
    return f"grep -nE {quoted(pattern)} {quoted(error.path)}   # correct this line, or delete it"


def _has_negation(option: str) -> bool:
    """Whether the flag of a boolean option has a --no- form in some command."""
    fields = [leaf.field for cls in CONFIGS for leaf in config.leaves(cls).values()]
    return any(f.default or not f.metadata["free"] for f in fields if f.name == option)


def _unknown_name(error: errors.UnknownName) -> str:
    if error.path is not None or error.suggestion is not None or error.advice:
        return _option(error)
    known = list(map(str, error.known))
    close = difflib.get_close_matches(str(error.value), known, cutoff=0.5) or known[:SHOWN]
    more = ", ..." if len(known) > SHOWN and len(close) == SHOWN else ""
    return f"one of {', '.join(close)}{more}" if close else "--help"


def _too_few_views(error: errors.TooFewViews) -> str:
    more = f"{_rewrite(error.cache)} --views {error.value}"
    return f"--views {error.there}, or add views: {more}"


# Files and folders


def _nearest(path: object) -> Path:
    """The innermost folder of a path that exists, itself included."""
    place = Path(str(path))
    return next((p for p in (place, *place.parents) if os.path.isdir(p)), Path("."))


def _look(path: object) -> str:
    """A command that shows what is at a path, or, where nothing is, in the folder above."""
    if os.path.isdir(str(path)) or not os.path.exists(str(path)):
        return f"ls -la {quoted(_nearest(path))}"
    return f"ls -l {quoted(path)}"


def _read(path: object) -> str:
    """A command that shows how a file begins."""
    begins = f"; head -c 300 {quoted(path)}" if os.path.isfile(str(path)) else ""
    return f"{_look(path)}{begins}"


def _open_files(error: errors.TooManyOpenFiles) -> str:
    more = min(4 * error.limit, error.hard_limit) if error.hard_limit > 0 else 4 * error.limit
    if more <= error.limit:
        return "fewer --workers   # an administrator can raise the hard limit of open files"
    return f"ulimit -n {more}   # then run again; or with fewer --workers"


def _temperature(error: errors.UnstoredTemperature) -> str:
    known = [*error.stored, error.value]
    grid = ",".join(f"{t:g}" if isinstance(t, float) else str(t) for t in known)
    return f"--temperature {error.stored[-1]:g}, or write a cache with --temperatures {grid}"


def _write(error: errors.WriteError) -> str:
    folder = quoted(_nearest(Path(str(error.path)).parent))
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return f"ls -la {folder}   # move away what is in the way, then run again"
    return f"df -h {folder}; ls -ld {folder}   # free space or permissions, then run again"


def _output_exists(error: errors.OutputExists) -> str:
    resume = "--resume to continue it, " if error.resumable else ""
    renamed = f"--overwrite to rename it to {error.renamed}, or " if error.renamed else ""
    return f"{resume}{renamed}another output"


def _wrong_kind(error: errors.WrongKind) -> str:
    if error.found == "cache":
        return f"fgkd inspect {quoted(error.path)}"
    if error.cache:
        return f"fgkd inspect {quoted(error.cache)}   # the cache that this run learned from"
    make = f"fgkd cache-logits --teacher {quoted(error.path)} --output CACHE"
    return f"{make}   # writes one of this run's logits"


# Data


def _dataset(error: errors.DatasetError) -> str:
    place, path = Path(str(error.path)), quoted(error.path)
    if error.line is not None:
        return f"sed -n {error.line}p {path}"
    if error.pattern:
        where = f"{path}/*.txt" if place.is_dir() else path
        return f"grep -n {quoted(error.pattern)} {where}"
    return f"head -c 300 {path}" if place.is_file() else f"ls {quoted(_nearest(place))}"


def _undecodable(error: errors.UndecodableName) -> str:
    if not os.path.lexists(os.path.join(error.path, error.key)):
        return "unpack the tars, rename these images, and pack them again"
    convert = f"convmv -r -f latin1 -t utf-8 {quoted(error.path)}"
    return f"{convert}   # shows the new names; with --notest, it renames (apt install convmv)"


def _dataset_hub(error: errors.DatasetHubError) -> str:
    if error.offline:
        return "unset HF_HUB_OFFLINE HF_DATASETS_OFFLINE   # or fetch it elsewhere first"
    if is_busy(error.status):
        return f"curl -I {quoted(error.url)}   # what was fetched is kept; run again later"
    page = f"private or gated? see {error.url}"
    return f"hf auth login   # {page}; a folder? give its place: --data hf:PATH"


def _mismatch(error: errors.DataMismatch) -> str:
    store = "" if error.path is None else f"rm -r {quoted(error.path)}"
    remedies = {
        "data": "point --data at the images the cache was made of",
        "added": "--extend to add them to the cache, or another --output",
        "classes": "give --data of its own classes, or --class-map FILE of lines teacher,data",
        "teacher": "give the teachers the cache was made with, in the same order",
        "cache": "give another --output, --extend if images were only added, or --overwrite to "
        "rename the old cache",
        "image_store": store and f"{store}   # the next command writes it again",
    }
    return remedies.get(error.subject) or f"give the {error.subject} it was made with"


def _run_mismatch(error: errors.RunMismatch) -> str:
    if {one.field for one in error.differences} == {"epochs"}:
        train_on = f"--initial-checkpoint {quoted(error.path)} and another --output"
        return f"{train_on}   # more epochs only with --sched constant or step"
    return f"fgkd {error.stage} --resume --output {quoted(error.path)}   # takes its own options"


# Caches


def _rewrite(cache: object) -> str:
    """The command that continues, grows or repairs a cache; of a URL's, where it was written."""
    if is_url(str(cache)):
        return "where it was written: fgkd cache-logits -c CACHE/args.yaml --output CACHE"
    folder = quoted(cache)
    if not (Path(str(cache)) / "args.yaml").is_file():
        return f"fgkd cache-logits --teacher TEACHER --output {folder}"
    return f"fgkd cache-logits -c {folder}/args.yaml --output {folder}"


def _version(error: errors.FormatVersionMismatch) -> str:
    if is_url(str(error.cache)):
        return "write the cache again with this version of fgkd, and upload it"
    return f"{_rewrite(error.cache)} --overwrite   # writes a new one"


def _shard(error: errors.DamagedShard) -> str:
    if is_url(str(error.cache)):
        return "upload the shard again; `fgkd inspect CACHE --verify` checks the original"
    if not error.rewritable:
        return f"restore it, or {_rewrite(error.cache)} --overwrite   # writes a new cache"
    return f"rm -f {quoted(error.path)} && {_rewrite(error.cache)}   # rewrites it alone"


def _download(error: errors.DownloadError) -> str:
    if error.url.startswith(("http://", "https://")):
        return f"curl -I {quoted(error.url)}"
    if error.url.startswith(HF_URL):
        page = "/".join(error.url.removeprefix(HF_URL).split("/")[:3])
        return f"hf auth login   # private or gated? see https://huggingface.co/{page}"
    return "check the address, the network and the credentials, then run again"


def _damaged(error: errors.DamagedCache) -> str:
    return f"restore {quoted(error.path)}, or write the cache again (cache-logits --overwrite)"


def _unstorable(error: errors.UnstorableLogits) -> str:
    if error.encoding:
        return f"--encoding {error.encoding}"
    return "fgkd evaluate TEACHER --split val   # does the teacher itself work?"


# Models and training


def _weights(error: errors.WeightsError) -> str:
    return f"{_look(error.path)}   # or give --model and --model-kwargs of the model that wrote it"


def _checkpoint(error: errors.CheckpointError) -> str:
    look = "" if error.path is None else f"{_look(error.path)}   # take another copy, or "
    return f"{look}--overwrite to start over"


def _tracker(error: errors.TrackerError) -> str:
    first = {
        "wandb": "wandb login, or export WANDB_MODE=offline",
        "mlflow": "export MLFLOW_TRACKING_URI=http://HOST:PORT of a server that runs",
    }
    ready = first.get(error.tracker, "run again")
    return f"{ready}; then the same command with --resume, or with --log-with ''"


def _device(error: errors.DeviceError) -> str:
    return "--device cpu" if error.device == "cuda" else "--device auto"


def _hub(error: errors.HubError) -> str:
    if is_busy(error.status):
        return "run it again later: the server is busy, and what was fetched is kept"
    model = str(error.model)
    if error.status and model.startswith((HF_HUB, TRANSFORMERS)):
        page = f"https://huggingface.co/{model.partition(':')[2]}"
        return f"hf auth login   # private or gated? see {page}"
    if model.startswith(TRANSFORMERS):
        get = f"hf download {quoted(model.removeprefix(TRANSFORMERS))} --local-dir DIR"
        return f"{get}   # where there is a network; then {TRANSFORMERS}DIR in its place"
    if model.startswith(("timm:", HF_HUB, "torchvision:")):  # a teacher, or a RUN
        fetch = "fetch its weights where there is a network"
        return f"{fetch}, then give that file in its place, with --teacher-model NAME"
    fetch = "fetch model.safetensors where there is a network"
    return f"{fetch}, then --initial-checkpoint FILE instead of --pretrained"


REMEDIES: dict[type, Callable[[Any], str]] = {
    errors.OptionError: _option,
    errors.UnusedOption: _unused,
    errors.UnstoredTemperature: _temperature,
    errors.UnknownName: _unknown_name,
    errors.NoTargets: lambda e: (
        "--cache DIR, or --distillation none --data NAME:PATH for the baseline"
    ),
    errors.TooFewViews: _too_few_views,
    errors.MissingPackage: lambda e: f"pip install {shlex.join(e.install.split())}",
    errors.FileError: lambda e: _look(e.path),
    errors.NotLocal: lambda e: "download it, and give the path of the copy",
    errors.MissingModel: lambda e: (
        f"{_look(e.path)}   # an unfinished run? continue it with --resume"
    ),
    errors.DamagedCopy: lambda e: f"rm -r {quoted(e.path)}   # the next command writes it again",
    errors.MissingDataset: lambda e: (
        f"{_look(e.path)}   # moved? give its place: --data {e.dataset}:PATH"
    ),
    errors.DatasetHubError: _dataset_hub,
    errors.UnreadableFile: lambda e: _read(e.path),
    errors.TooManyOpenFiles: _open_files,
    errors.WriteError: _write,
    errors.OutputExists: _output_exists,
    errors.RunInUse: lambda e: (
        f"wait for it, or stop it: kill {e.pid}" if e.pid else "wait for it, or another --output"
    ),
    errors.WrongKind: _wrong_kind,
    errors.DatasetError: _dataset,
    errors.UndecodableName: _undecodable,
    errors.NoTrainSplit: lambda e: "--data of a dataset with training images",
    errors.BadBoundingBox: lambda e: "correct the dataset's list of boxes, or --no-bbox-crop",
    errors.RecipeError: lambda e: (
        "write the cache or train the teacher again with this version of fgkd"
    ),
    errors.UnreadableImage: lambda e: (
        f"file {quoted(e.path)}   # replace it, or --skip-bad-images to leave it out"
    ),
    errors.UnreadableImages: lambda e: f"file {shlex.join(map(str, e.paths[:5]))}",
    errors.DataMismatch: _mismatch,
    errors.RunMismatch: _run_mismatch,
    errors.PixelMismatch: lambda e: (
        "install the versions of the cache's manifest.json, or write the cache again here"
    ),
    errors.CacheError: lambda e: f"fgkd inspect {quoted(e.cache)} --verify",
    errors.IncompleteCache: lambda e: (
        f"{_rewrite(e.cache)}   # continues" if not e.writer else f"wait for {e.writer}"
    ),
    errors.CacheInUse: lambda e: (
        f"wait for it; is it gone? rm {quoted(e.path)}; or share the work: --shard-range A:B"
    ),
    errors.DamagedCache: _damaged,
    errors.DamagedShard: _shard,
    errors.FormatVersionMismatch: _version,
    errors.TargetMismatch: lambda e: "write the cache again, with its own teacher and versions",
    errors.DamagedTargets: lambda e: "fgkd inspect CACHE --verify   # which shards are damaged?",
    errors.DownloadError: _download,
    errors.UnstorableLogits: _unstorable,
    errors.WeightsError: _weights,
    errors.HubError: _hub,
    errors.OtherLibrary: lambda e: f"{quoted(e.suggestion)} in the place of {quoted(e.model)}",
    errors.ModelError: lambda e: "another --model, or --model-kwargs K=V that this one takes",
    errors.ExportError: lambda e: f"--format {e.others[0]}" if e.others else "another model",
    errors.CheckpointError: _checkpoint,
    errors.NotFinite: lambda e: (
        "--overwrite to start over with a lower --lr, with --clip-grad 1, or without --amp"
    ),
    errors.DeviceError: _device,
    errors.TooManyRanks: lambda e: (
        f"let torchrun start {e.count} processes on this machine, one per GPU, or --device cpu"
    ),
    errors.OutOfMemory: lambda e: (
        "in training --grad-accum-steps 2 (the same steps in parts), elsewhere --batch-size auto"
    ),
    errors.NotDeterministic: lambda e: "--no-deterministic",
    errors.TrackerError: _tracker,
    errors.CompileError: lambda e: "--compile off, or a C++ compiler: apt-get install g++",
    errors.LostWorker: lambda e: (
        "--workers 0, or in Docker more shared memory: docker run --shm-size=8g"
        if "Bus error" in e.how
        else "--workers 0, or fewer than now   # out of memory? sudo dmesg | tail"
    ),
    errors.LostProcess: lambda e: (
        "the same command again, of a training with --resume: it continues from what is there"
    ),
}
