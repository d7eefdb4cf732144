"""Exceptions: one tree under `FgkdError`, each with the facts of the failure as attributes.

`str(error)` says what happened, with the values seen. What a user can do about it depends on how
fgkd is used, so remedies are not in here: the commands derive theirs from type and attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class FgkdError(Exception):
    """Base class: a failure whose cause lies outside fgkd's own code.

    Errors pickle with all attributes, so that DataLoader workers and other ranks can pass them on.
    """

    message: str

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.__dict__)


def _restore(cls: type[FgkdError], facts: dict[str, Any]) -> FgkdError:
    error = cls.__new__(cls)
    error.__dict__.update(facts)
    return error


# Options and arguments


@dataclass(eq=False, kw_only=True)
class OptionError(FgkdError):
    """An option, alone or together with others, has a value that cannot be used.

    option: its name as in the function's signature and in YAML. suggestion: a value that works;
    None: leave the option out. advice: another way out, in words. path: the file of options that
    gives the value, if one does.
    """

    option: str
    value: Any = None
    suggestion: Any = None
    advice: str = ""
    path: Any = None


@dataclass(eq=False, kw_only=True)
class MissingOption(OptionError):
    """An option that is needed was not given; suggestion: an example."""


@dataclass(eq=False, kw_only=True)
class NoTargets(MissingOption):
    """A student was to distil, but neither a cache nor a teacher was given."""

    option: str = "cache"


@dataclass(eq=False, kw_only=True)
class TooFewViews(OptionError):
    """More views are asked for than the cache has. cache: its folder or URL; there: its views."""

    cache: Any
    there: int
    option: str = "views"


@dataclass(eq=False, kw_only=True)
class UnstoredTemperature(OptionError):
    """A `topk` or `topk8` cache has no tail for a temperature. stored: those that it has."""

    stored: Sequence[float]
    option: str = "temperature"


@dataclass(eq=False, kw_only=True)
class UnusedOption(OptionError):
    """An option was given that would have no effect. reason: because of what.

    needs: an option, and a value of it with which this one has an effect.
    """

    reason: str = ""
    needs: tuple[str, Any] | None = None


@dataclass(eq=False, kw_only=True)
class UnknownName(OptionError):
    """A name is not in a registry, or not an option. known: the names there are."""

    known: Sequence[str] = ()


@dataclass(eq=False, kw_only=True)
class MissingPackage(FgkdError):
    """An optional Python package is not installed. install: words to give `pip install`."""

    package: str
    install: str


# Files and folders


@dataclass(eq=False, kw_only=True)
class FileError(FgkdError):
    """A file or folder cannot be used. path: which."""

    path: Any
    reason: str = ""


@dataclass(eq=False, kw_only=True)
class NotLocal(FileError):
    """A URL was given where a path on this machine is needed. path: the URL."""


@dataclass(eq=False, kw_only=True)
class MissingFile(FileError):
    """A file or folder is not there."""


@dataclass(eq=False, kw_only=True)
class MissingDataset(MissingFile):
    """The folder of a dataset is not there. dataset: its name, as in NAME:PATH."""

    dataset: str


@dataclass(eq=False, kw_only=True)
class DatasetHubError(MissingDataset):
    """A dataset cannot be fetched from a hub. path: its name there; url: its page.

    status: of the HTTP answer, 0 if there was none; offline: the hub's client was told to stay so.
    """

    url: str
    status: int
    offline: bool


@dataclass(eq=False, kw_only=True)
class UnreadableFile(FileError):
    """A file cannot be read: the system refuses, or it is of another format or damaged."""


@dataclass(eq=False, kw_only=True)
class TooManyOpenFiles(UnreadableFile):
    """A file cannot be opened because this process has too many open. limit: how many it may have.

    hard_limit: up to which the process may raise it.
    """

    limit: int
    hard_limit: int


@dataclass(eq=False, kw_only=True)
class WriteError(FileError):
    """A file cannot be written. errno: the system's error number, 0 if it has none."""

    errno: int = 0


@dataclass(eq=False, kw_only=True)
class MissingModel(MissingFile):
    """A folder holds no trained model."""


@dataclass(eq=False, kw_only=True)
class DamagedCopy(FileError):
    """A folder that fgkd wrote, and can write again from its source, is damaged."""


@dataclass(eq=False, kw_only=True)
class OutputExists(FileError):
    """An output folder or file exists and may not be replaced.

    resumable: it is a run that can be continued. renamed: the name it gets if it is overwritten.
    """

    resumable: bool = False
    renamed: Any = None


@dataclass(eq=False, kw_only=True)
class RunInUse(FileError):
    """Another process trains in a run's folder. pid: which, on this machine; 0: not known."""

    pid: int = 0


@dataclass(eq=False, kw_only=True)
class WrongKind(FileError):
    """A folder is of another kind than expected. found: "run" or "cache".

    cache: of a run, the cache that it learned from.
    """

    found: str
    cache: str | None = None


# Data


@dataclass(eq=False, kw_only=True)
class DatasetError(FileError):
    """The files of a dataset are not laid out as expected. path: file or folder.

    line: the line of a list file, from 1; pattern: a line to look for in it.
    """

    line: int | None = None
    pattern: str = ""


@dataclass(eq=False, kw_only=True)
class UndecodableName(DatasetError):
    """The name of an image in a dataset is not UTF-8 text, as keys of caches are. key: which."""

    key: str


@dataclass(eq=False, kw_only=True)
class NoTrainSplit(DatasetError):
    """A dataset without training images was given to train on, or to make a cache of."""


@dataclass(eq=False, kw_only=True)
class BadBoundingBox(FgkdError):
    """A bounding box has no area, or lies outside its image. box: x, y, width, height in pixels."""

    box: Sequence[float]


@dataclass(eq=False, kw_only=True)
class UnreadableImage(FileError):
    """An image file cannot be read or decoded."""


@dataclass(eq=False, kw_only=True)
class UnreadableImages(FgkdError):
    """Some of the images that were given could not be read; the others were. paths: which."""

    paths: Sequence[str]


@dataclass(frozen=True)
class Difference:
    """One field that differs between two descriptions."""

    field: str
    old: Any
    new: Any
    note: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {self.old} -> {self.new}{self.note}"


@dataclass(eq=False, kw_only=True)
class DataMismatch(FgkdError):
    """Something is of other data, classes, options or weights than what it is used with.

    subject: what does not fit, a key of the commands' remedies: "data", "classes", "teacher",
    "cache", "image_store", "run". differences: field by field, old -> new.
    """

    subject: str
    differences: Sequence[Difference] = ()
    path: Any = None

    @property
    def field(self) -> str:
        """The first field that differs."""
        return self.differences[0].field

    @property
    def old(self) -> Any:
        """Its recorded value."""
        return self.differences[0].old

    @property
    def new(self) -> Any:
        """Its value now."""
        return self.differences[0].new


@dataclass(eq=False, kw_only=True)
class ContentMismatch(DataMismatch):
    """An image's bytes are not those that a cache was made of: never an unreadable image to skip.

    key: of the image.
    """

    key: str
    subject: str = "data"


@dataclass(eq=False, kw_only=True)
class RunMismatch(DataMismatch):
    """A run cannot be resumed with these options. stage: the command that began it."""

    stage: str
    subject: str = "run"


@dataclass(eq=False, kw_only=True)
class RecipeError(FgkdError):
    """A stored view recipe lacks fields, or has unknown ones. fields: their names."""

    fields: Sequence[str]


@dataclass(eq=False, kw_only=True)
class PixelMismatch(FgkdError):
    """A rendered view's pixels are not those that the teacher saw.

    libraries: versions that differ from those the cache was written with.
    """

    key: str
    view: int
    libraries: Sequence[Difference] = ()


# Caches


@dataclass(eq=False, kw_only=True)
class CacheError(FgkdError):
    """A cache cannot be used. cache: its folder or URL."""

    cache: Any


@dataclass(eq=False, kw_only=True)
class IncompleteCache(CacheError):
    """A cache is not written to its end. written: how many shards are there, of `total`, if known.

    writer: who is writing it at present, as far as is known.
    """

    written: int = 0
    total: int | None = None
    writer: str = ""


@dataclass(eq=False, kw_only=True)
class CacheInUse(CacheError):
    """Another process writes the same blocks. path: its lock file; host, pid: where it runs."""

    path: Any
    host: str
    pid: int


@dataclass(eq=False, kw_only=True)
class DamagedCache(CacheError):
    """A cache's manifest, identity or sample table is damaged. path: of that file."""

    path: Any


@dataclass(eq=False, kw_only=True)
class DamagedShard(CacheError):
    """A shard is missing, damaged or of another cache. path: of its file; reason: why.

    rewritable: False for a cache of an earlier format version, to which nothing is added.
    """

    path: Any
    reason: str
    rewritable: bool = True


@dataclass(eq=False, kw_only=True)
class FormatVersionMismatch(CacheError):
    """A cache is of another format version. old: the cache's; new: this version's."""

    old: Any
    new: Any


@dataclass(eq=False, kw_only=True)
class DownloadError(FgkdError):
    """A file behind a URL cannot be fetched. is_final: trying again would not help."""

    url: str
    reason: str
    is_final: bool = False


@dataclass(eq=False, kw_only=True)
class UnstorableLogits(FgkdError):
    """A teacher's logits are not finite, or too large for the encoding.

    encoding: one that can hold them; "" if none can.
    """

    encoding: str = ""


@dataclass(eq=False, kw_only=True)
class DamagedTargets(FgkdError):
    """Stored targets cannot be decoded."""


@dataclass(eq=False, kw_only=True)
class TargetMismatch(FgkdError):
    """Stored targets are not the teacher's logits. difference: the largest one, in logits."""

    difference: float


# Models and training


@dataclass(eq=False, kw_only=True)
class ModelError(FgkdError):
    """A model cannot be built, loaded, or used for this. model: its name or folder."""

    model: Any


@dataclass(eq=False, kw_only=True)
class OtherLibrary(ModelError):
    """A model of another library was given as timm's. suggestion: the source that names it."""

    suggestion: str


@dataclass(eq=False, kw_only=True)
class WeightsError(FileError):
    """A file of weights cannot be loaded into the model. path: of the file."""

    model: Any = None


@dataclass(eq=False, kw_only=True)
class HubError(ModelError):
    """Pretrained weights cannot be fetched from a hub. status: of its HTTP answer, 0 if none."""

    status: int = 0


@dataclass(eq=False, kw_only=True)
class ExportError(ModelError):
    """A model cannot be expressed in an export format. others: formats to try instead."""

    format: str
    others: Sequence[str] = ()


@dataclass(eq=False, kw_only=True)
class CheckpointError(FileError):
    """A training checkpoint is missing, damaged or of another run."""


@dataclass(eq=False, kw_only=True)
class NotFinite(FgkdError):
    """A loss or gradient is nan or inf; no update was made. step: from 0."""

    step: int


@dataclass(eq=False, kw_only=True)
class DeviceError(FgkdError):
    """A device is not there or cannot do what is asked. device: its name."""

    device: str


@dataclass(eq=False, kw_only=True)
class TooManyRanks(DeviceError):
    """More processes than GPUs were started on a machine. count: of its GPUs."""

    count: int


@dataclass(eq=False, kw_only=True)
class OutOfMemory(DeviceError):
    """The device has too little memory."""


@dataclass(eq=False, kw_only=True)
class NotDeterministic(DeviceError):
    """A deterministic run needs an operation that has no deterministic implementation."""


@dataclass(eq=False, kw_only=True)
class TrackerError(FgkdError):
    """An experiment tracker cannot be started. tracker: its name; reason: its client's words."""

    tracker: str
    reason: str


@dataclass(eq=False, kw_only=True)
class CompileError(FgkdError):
    """torch.compile cannot compile a model here."""


@dataclass(eq=False, kw_only=True)
class LostProcess(FgkdError):
    """Another rank ended without reporting an error. rank: of this process."""

    rank: int


def quoted(path: object) -> str:
    """A path as one word of a shell command."""
    import shlex

    return shlex.quote(str(path))


def near(name: str, known: Sequence[str]) -> str:
    """`"; did you mean a, b?"` for the names of `known` closest to `name`, else an empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


@dataclass(eq=False, kw_only=True)
class LostWorker(FgkdError):
    """A process that loads images ended by itself. how: as `was killed by signal: Killed`."""

    how: str
