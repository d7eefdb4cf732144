"""The `Try:` line of an error: what to do about it on the command line, from its type and facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgkd import errors
from fgkd.errors import quoted


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
    found = error.hint or remedy(error)
    return f"{error.message}\nTry: {found}" if found else error.message


def _option(error: errors.OptionError) -> str:
    name = flag(error.option)
    if error.suggestion is None:
        return error.advice or f"leave {name} out"
    given = error.suggestion
    value = " ".join(map(str, given)) if isinstance(given, tuple | list) else str(given)
    if isinstance(given, bool):
        use = name if given else f"--no-{name.removeprefix('--')}"
    elif not name.startswith("--"):
        use = value
    else:
        use = f"{name} {value if isinstance(given, tuple | list) else quoted(value)}"
    return f"{use}{', or ' + error.advice if error.advice else ''}"


def _unknown_name(error: errors.UnknownName) -> str:
    if error.suggestion is not None or error.advice:
        return _option(error)
    if error.known:
        return f"one of {', '.join(map(str, error.known))}"
    return "--help"


def _temperature(error: errors.UnstoredTemperature) -> str:
    grid = ",".join(f"{t:g}" for t in [*error.stored, error.value])
    return f"--temperature {error.suggestion:g}, or write a cache with --temperatures {grid}"


def _write(error: errors.WriteError) -> str:
    import errno
    import os
    from pathlib import Path

    path = Path(error.path)
    folder = quoted(next(p for p in path.parents if os.path.isdir(p)))
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return f"ls -la {folder}   # move away what is in the way, then run again"
    return f"df -h {folder}; ls -ld {folder}   # free space or permissions, then run again"


def _output_exists(error: errors.OutputExists) -> str:
    resume = "--resume to continue it, " if error.resumable else ""
    return f"{resume}--overwrite to rename it to {error.renamed}, or another output"


def _dataset(error: errors.DatasetError) -> str:
    import os

    path = quoted(error.path)
    if error.line is not None:
        return f"sed -n {error.line}p {path}"
    if error.pattern:
        where = f"{path}/*.txt" if os.path.isdir(error.path) else path
        return f"grep -n {quoted(error.pattern)} {where}"
    return f"ls {path}" if os.path.isdir(error.path) else f"head -c 300 {path}"


def _mismatch(error: errors.DataMismatch) -> str:
    path = quoted(error.path) if error.path is not None else ""
    return {
        "data": "point --data at the images the cache was made of",
        "classes": "give --data as the model was trained on it, in the same order",
        "teacher": "give the teachers the cache was made with, in the same order",
        "cache": "give another --output, or --overwrite to rename the old cache",
        "image_store": f"rm -r {path}   # the next command writes it again",
        "run": f"the same command without the changed options; or another --output than {path}",
    }[error.subject]


def _rewrite(cache: Any) -> str:
    folder = quoted(cache)
    return f"fgkd cache-logits -c {folder}/args.yaml --output {folder}"


def _version(error: errors.FormatVersionMismatch) -> str:
    if "://" in str(error.cache):
        return "write the cache again with this version of fgkd, and upload it"
    return f"{_rewrite(error.cache)} --overwrite   # writes a new one"


def _shard(error: errors.DamagedShard) -> str:
    if "://" in str(error.cache):
        return "upload the shard again; `fgkd inspect CACHE --verify` checks the original"
    if not error.rewritable:
        return f"restore it, or {_rewrite(error.cache)} --overwrite   # writes a new cache"
    return f"rm -f {quoted(error.path)} && {_rewrite(error.cache)}   # rewrites it alone"


def _package(error: errors.MissingPackage) -> str:
    return f"pip install {error.install}"


REMEDIES: dict[type, Callable[[Any], str]] = {
    errors.OptionError: _option,
    errors.UnstoredTemperature: _temperature,
    errors.UnknownName: _unknown_name,
    errors.MissingPackage: _package,
    errors.MissingFile: lambda e: f"ls {quoted(e.path.parent)}",
    errors.UnreadableFile: lambda e: f"ls -l {quoted(e.path)}; head -c 300 {quoted(e.path)}",
    errors.FileError: lambda e: f"ls -l {quoted(e.path)}",
    errors.WriteError: _write,
    errors.OutputExists: _output_exists,
    errors.DatasetError: _dataset,
    errors.UnreadableImage: lambda e: (
        f"file {quoted(e.path)}   # replace it, or --skip-bad-images to leave it out"
    ),
    errors.DataMismatch: _mismatch,
    errors.PixelMismatch: lambda e: (
        "install the versions of the cache's manifest.json, or write the cache again here"
    ),
    errors.IncompleteCache: lambda e: f"{_rewrite(e.cache)}   # continues",
    errors.DamagedCache: lambda e: (
        f"restore {quoted(e.path)}, or write the cache again (cache-logits --overwrite)"
    ),
    errors.DamagedShard: _shard,
    errors.FormatVersionMismatch: _version,
    errors.DownloadError: lambda e: f"curl -I {quoted(e.url)}",
    errors.DamagedTargets: lambda e: "fgkd inspect CACHE --verify   # which shards are damaged?",
    errors.UnstorableLogits: lambda e: (
        f"--encoding {e.encoding}"
        if e.encoding
        else "fgkd evaluate TEACHER --split val   # does the teacher itself work?"
    ),
    errors.WeightsError: lambda e: (
        f"ls -l {quoted(e.path)}; or give --model and --model-kwargs of the model that wrote it"
    ),
    errors.HubError: lambda e: (
        "fetch model.safetensors where there is a network, then --initial-checkpoint FILE "
        "instead of --pretrained"
    ),
    errors.ModelError: lambda e: "another --model, or --model-kwargs K=V that this one takes",
    errors.CheckpointError: lambda e: (
        f"ls -l {quoted(e.path)}   # take another copy, or start over with --overwrite"
    ),
    errors.NotFinite: lambda e: (
        "start over with a lower --lr, with --clip-grad 1, or without --amp"
    ),
    errors.DeviceError: lambda e: "--device auto" if e.device != "cuda" else "--device cpu",
    errors.OutOfMemory: lambda e: (
        "--batch-size 16   # in training also --grad-accum-steps 2 (the same steps in parts) "
        "or --eval-batch-size 64"
    ),
    errors.NotDeterministic: lambda e: "--no-deterministic",
    errors.CompileError: lambda e: (
        "the same command without --compile, or a C++ compiler: apt-get install g++"
    ),
    errors.LostProcess: lambda e: (
        "the same command with --resume continues from the last checkpoint"
    ),
}
