"""Matching a teacher's classes with a dataset's: by name, by a table, or by order."""

from __future__ import annotations

import csv
import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgkd import files
from fgkd.errors import DataMismatch, DatasetError, Difference, UnreadableFile
from fgkd.models.classifier import Classifier

ORDER = "order"  # the value of class_map for classes that correspond by their position
SHOWN = 4  # names of each side in an error
WORDNET_ID = re.compile(r"n\d{8}")  # as of ImageNet's classes, also in front of a name
EXACT = "="  # begins the key of a name as it is, which comes before what resembles it


@dataclass(frozen=True)
class ClassMatch:
    """For each of the data's classes, the teacher's classes that stand for it.

    columns: indices of the teacher's logits; several: their probabilities add up. text: how they
    were found, for a person; "" where both sides have the same classes in the same order.
    """

    columns: tuple[tuple[int, ...], ...]
    text: str = ""

    @property
    def is_identity(self) -> bool:
        """Whether the teacher's logits can be used as they are."""
        return not self.text


def match_classes(
    teacher: Sequence[str],
    data: Sequence[str],
    class_map: str | None = None,
    *,
    name: str,
    num: int,
) -> ClassMatch:
    """Which of a teacher's classes stand for each of the data's.

    teacher: its class names, by index of its `num` logits; [] if they are not known. class_map:
    None matches names; "order" takes the classes as they come; else the path of a CSV file with the
    columns teacher and data. name: of the teacher, for messages. Raises: DataMismatch with the
    first names of both sides; UnreadableFile or DatasetError for the CSV file.
    """
    if class_map == ORDER:
        if num != len(data):
            raise _mismatch(
                f"{name} has {num} classes and the data {len(data)}", teacher, data, name
            )
        return ClassMatch(tuple((i,) for i in range(num)), f"{num} classes by their order")
    if class_map:
        return _by_table(Path(class_map), teacher, data, num, name)
    if list(teacher) == list(data):
        return ClassMatch(tuple((i,) for i in range(len(data))))
    if not teacher:
        raise _mismatch(f"{name} does not name its {num} classes", teacher, data, name)
    known = _by_alias(teacher)
    columns = []
    for one in data:
        found = _find(one, known)
        if len(found) != 1:
            which = "has no class" if not found else f"has {len(found)} classes"
            raise _mismatch(f"{name} {which} named {one!r}", teacher, data, name)
        columns.append((found[0],))
    if len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)[0]
        both = [one for one, c in zip(data, columns, strict=True) if c[0] == twice]
        message = f"{' and '.join(map(repr, both[:2]))} are both {teacher[twice]!r} of {name}"
        raise _mismatch(message, teacher, data, name)
    of = f"{len(data)} of the teacher's {num:,} classes" if num > len(data) else f"{num} classes"
    return ClassMatch(tuple(columns), f"{of}, by name")


def fit_classes(
    model: Classifier, classes: Sequence[str], class_map: str | None = None, *, name: str
) -> tuple[Classifier, str]:
    """A classifier whose logits are of the data's classes, and a text that says how.

    The model itself, and "", if its classes are the data's, in their order. Where classes are
    merged, logits are the logarithms of summed probabilities. Raises: as `match_classes`.
    """
    num = model.num_classes
    match = match_classes(model.classes, classes, class_map, name=name, num=num)
    return _matched(model, match, classes), match.text


def _matched(model: Classifier, match: ClassMatch, classes: Sequence[str]) -> Classifier:
    if match.is_identity:
        return model
    config: dict[str, Any] = dict(model.config)
    config |= {"label_names": list(classes), "num_classes": len(classes)}
    content = {"weights": model.weights_sha256, "columns": [list(c) for c in match.columns]}
    config["weights_sha256"] = files.fingerprint(content)
    return Classifier(_Matched(model.net, match.columns, config), uses_dist=False).eval()


class _Matched(nn.Module):
    """A network whose logits are selected, or merged, into those of other classes."""

    def __init__(
        self, net: nn.Module, columns: Sequence[Sequence[int]], config: dict[str, Any]
    ) -> None:
        super().__init__()
        self.net, self.pretrained_cfg = net, config
        self.columns = [list(some) for some in columns]
        self.merges = any(len(some) > 1 for some in self.columns)

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        if not self.merges:
            return out[:, [some[0] for some in self.columns]]
        log_p = out.log_softmax(1)
        return torch.stack([log_p[:, some].logsumexp(1) for some in self.columns], dim=1)


def _normal(name: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", name.casefold().strip()))


def _aliases(name: str) -> list[str]:
    """Names that may stand for a class: itself, and of a WordNet id what timm knows of it."""
    found = [_normal(name)]
    if WORDNET_ID.match(name):
        synset = name[:9]
        found += [synset, *_lemmas().get(synset, ())]
    return list(dict.fromkeys(found))


@functools.cache
def _lemmas() -> dict[str, list[str]]:
    """Names of each WordNet id of ImageNet, by timm: all of them, and each one."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet22k")
    found = {}
    for synset in info.label_names():
        text = info.label_name_to_description(synset, detailed=False)
        found[synset] = [_normal(text), *map(_normal, text.split(","))]
    return found


def _by_alias(teacher: Sequence[str]) -> dict[str, list[int]]:
    known: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(teacher):
        for alias in (EXACT + name, *_aliases(name)):
            known[alias].append(i)
    return known


def _find(name: str, known: dict[str, list[int]]) -> list[int]:
    """Indices of the teacher's classes that a name may mean, by its surest alias."""
    for alias in (EXACT + name, *_aliases(name)):
        if alias in known:
            return known[alias]
    return []


def _by_table(
    path: Path, teacher: Sequence[str], data: Sequence[str], num: int, name: str
) -> ClassMatch:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise UnreadableFile(f"cannot read {path}: {error}", path=path, reason=str(error)) from None
    place = {one: i for i, one in enumerate(teacher)} or {str(i): i for i in range(num)}
    columns: dict[str, list[int]] = {one: [] for one in data}
    for number, row in enumerate(rows, start=1):
        if not any(row) or (
            number == 1 and [cell.casefold() for cell in row] == ["teacher", "data"]
        ):
            continue
        if len(row) != 2 or row[0] not in place or row[1] not in columns:
            expected = f"a class of {name}, a comma and a class of the data"
            message = f"{path}, line {number}: expected {expected}, found {','.join(row)!r}"
            raise DatasetError(message, path=path, line=number)
        columns[row[1]].append(place[row[0]])
    if lacking := [one for one, some in columns.items() if not some]:
        message = f"{path} names no class of {name} for {len(lacking)} classes, as {lacking[0]!r}"
        raise DatasetError(message, path=path)
    used = sum(map(len, columns.values()))
    return ClassMatch(tuple(map(tuple, columns.values())), f"{used} of {num:,} classes, by {path}")


def _mismatch(what: str, teacher: Sequence[str], data: Sequence[str], name: str) -> DataMismatch:
    def first(names: Sequence[str]) -> str:
        shown = ", ".join(map(repr, names[:SHOWN]))
        return (f"{shown}, ..." if len(names) > SHOWN else shown) or "no names"

    difference = Difference("classes", first(teacher), first(data))
    message = f"{what}\n  the teacher's: {difference.old}\n  the data's: {difference.new}"
    return DataMismatch(message, subject="classes", differences=(difference,), path=name)
