"""Encodings of teacher logits: how a row of logits is stored, and how it is read back.

Shape legend: N rows (any leading shape), C classes, L labels per row, K kept classes, T
temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fgkd.cache.identity import EncodingIdentity
from fgkd.errors import DamagedTargets, UnstorableLogits, UnstoredTemperature

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # array name -> (dtype, trailing shape)


@dataclass(frozen=True)
class Codec:
    """How a row of C float32 logits is stored: an entry of `ENCODINGS` and its parameters.

    top_k, temperatures: only `topk` and `topk8` have them. num_labels: true classes per row, 2
    where views are mixed.
    """

    name: str
    num_classes: int
    top_k: int = 0
    temperatures: tuple[float, ...] = ()
    num_labels: int = 1

    @staticmethod
    def of(encoding: EncodingIdentity, num_classes: int, mixes: bool) -> Codec:
        """The codec of a cache. mixes: its views are mixed in pairs.

        Raises: ValueError for an unknown encoding, or a top k that does not fit the classes.
        """
        fits = encoding.name not in TRUNCATED or 0 < encoding.top_k < num_classes - 2
        if encoding.name not in ENCODINGS or not fits:
            raise ValueError(f"{num_classes} classes cannot have the encoding {encoding}")
        labels = 2 if mixes else 1
        return Codec(encoding.name, num_classes, encoding.top_k, encoding.temperatures, labels)

    @property
    def num_kept(self) -> int:
        """Classes a truncated row keeps: the top K and the labels, or as many runners-up."""
        return self.top_k + self.num_labels

    @property
    def truncated(self) -> bool:
        """Whether only some classes have a logit of their own, and temperatures a grid."""
        return self.name in TRUNCATED

    def arrays(self) -> Shapes:
        """Stored array name -> (dtype, trailing shape)."""
        return ENCODINGS[self.name].arrays(self)

    def bytes_per_view(self) -> int:
        """Stored bytes of one target, its 8-byte pixel digest included."""
        shapes = self.arrays().values()
        return 8 + sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in shapes)

    def encode(self, logits_NC: np.ndarray, labels_NL: np.ndarray) -> Arrays:
        """The arrays to store for float32 logits [..., C] and int labels [..., L] (-1: none).

        Raises: UnstorableLogits for a logit that is not finite or does not fit float16 (beyond
        +-65504).
        """
        if not np.isfinite(logits_NC).all():
            raise UnstorableLogits("the teacher's logits are not finite (nan or inf)")
        largest = np.abs(logits_NC).max(initial=0.0)
        if self.name in ("dense", "topk") and largest > 65504:
            message = f"a teacher logit of {largest:.3g} does not fit float16"
            raise UnstorableLogits(message, encoding="dense32")
        return ENCODINGS[self.name].encode(self, logits_NC.astype(np.float32), labels_NL)

    def decode(self, arrays: Arrays, temperature: float | None = None) -> np.ndarray:
        """float32 logits [..., C] whose softmax at `temperature` is the stored target.

        Only truncated ones depend on the temperature: there the classes that were not kept share
        the stored tail evenly, so a loss on softmax(logits / temperature) sees the tail's mass.
        None: the first stored temperature, which is enough for the argmax. Raises:
        UnstoredTemperature, and DamagedTargets for a class that does not exist.
        """
        return ENCODINGS[self.name].decode(self, arrays, temperature)

    def refuse_temperature(self, temperature: float) -> None:
        """Raise UnstoredTemperature when a truncated row has no tail for this temperature."""
        if self.truncated and temperature not in self.temperatures:
            grid = ",".join(f"{t:g}" for t in self.temperatures)
            message = f"temperature {temperature:g} is not on the grid of this {self.name} cache"
            raise UnstoredTemperature(
                f"{message} ({grid})",
                value=temperature,
                suggestion=self.temperatures[-1],
                stored=self.temperatures,
            )


@dataclass(frozen=True)
class Encoding:
    """The three functions of an encoding. exactness: how near decoded logits are, in words."""

    arrays: Callable[[Codec], Shapes]
    encode: Callable[[Codec, np.ndarray, np.ndarray], Arrays]
    decode: Callable[[Codec, Arrays, float | None], np.ndarray]
    exactness: str


def _widen(half: np.ndarray) -> np.ndarray:
    """float16 to float32, exactly; 25 times as fast as NumPy."""
    import torch

    flat = torch.from_numpy(np.require(half, requirements=["C", "W"])).view(-1)
    wide = torch.empty(flat.shape)
    # Pieces so small that torch converts them in this thread: waiting for others would cost more.
    for to, piece in zip(wide.split(1 << 15), flat.split(1 << 15), strict=True):
        to.copy_(piece)
    return wide.view(half.shape).numpy()


def _encode_int8(codec: Codec, logits_NC: np.ndarray, labels_NL: np.ndarray) -> Arrays:
    low = logits_NC.min(-1, keepdims=True)
    scale = np.maximum((logits_NC.max(-1, keepdims=True) - low) / 255, 1e-12).astype(np.float32)
    codes = np.rint((logits_NC - low) / scale).clip(0, 255).astype(np.uint8)
    return {"codes": codes, "scale": scale[..., 0], "low": low[..., 0].astype(np.float32)}


def _decode_int8(codec: Codec, arrays: Arrays, temperature: float | None) -> np.ndarray:
    scaled = arrays["codes"].astype(np.float32) * arrays["scale"][..., None]
    return scaled + arrays["low"][..., None]


def _topk_arrays(codec: Codec) -> Shapes:
    return {
        "values": ("float16", (codec.num_kept,)),
        "indices": ("uint16" if codec.num_classes <= 65536 else "uint32", (codec.num_kept,)),
        "log_tail": ("float32", (len(codec.temperatures),)),
    }


def kept_classes(codec: Codec, logits_NC: np.ndarray, labels_NL: np.ndarray) -> np.ndarray:
    """The top K classes and the labels, in rising order: int64 [..., K + L]."""
    # Labels first, then by falling logit and rising class: any K + L best of that hold the top K.
    favoured = -logits_NC.astype(np.float64)
    for label_N in np.moveaxis(labels_NL, -1, 0):
        at = np.maximum(label_N, 0)[..., None]
        own = np.take_along_axis(favoured, at, -1)
        np.put_along_axis(favoured, at, np.where(label_N[..., None] >= 0, -np.inf, own), -1)
    return np.sort(np.argsort(favoured, axis=-1, kind="stable")[..., : codec.num_kept], axis=-1)


def log_tails(codec: Codec, logits_NC: np.ndarray, kept_NK: np.ndarray) -> np.ndarray:
    """log of the sum of exp(logit / T) over the classes not kept: float64 [..., T]."""
    rest = logits_NC.astype(np.float64)
    np.put_along_axis(rest, kept_NK, -np.inf, -1)
    tails = []
    for temperature in codec.temperatures:
        scaled = rest / temperature
        top = scaled.max(-1, keepdims=True)
        tails.append(np.log(np.exp(scaled - top).sum(-1)) + top[..., 0])
    return np.stack(tails, axis=-1)


def tail_logits(codec: Codec, log_tail_NT: np.ndarray) -> np.ndarray:
    """The logit that the classes not kept share at each temperature: float64 [..., T]."""
    each_NT = log_tail_NT.astype(np.float64) - np.log(codec.num_classes - codec.num_kept)
    return np.array(codec.temperatures) * each_NT


def _falling(kept_NK: np.ndarray, values_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by falling value; ties stay in the order they have, which is by class."""
    order = np.argsort(-values_NK, axis=-1, kind="stable")
    return np.take_along_axis(kept_NK, order, -1), np.take_along_axis(values_NK, order, -1)


def _spread(
    codec: Codec, indices_NK: np.ndarray, values_NK: np.ndarray, each_N: np.ndarray
) -> np.ndarray:
    """float32 [..., C]: the kept logits at their classes, and one logit for all others."""
    logits = np.broadcast_to(each_N[..., None], (*each_N.shape, codec.num_classes))
    logits, index = logits.astype(np.float32), indices_NK.astype(np.int64)
    if index.size and index.max() >= codec.num_classes:
        raise DamagedTargets(f"a stored class index {index.max()} is not below {codec.num_classes}")
    np.put_along_axis(logits, index, values_NK.astype(np.float32), -1)
    return logits


def _encode_topk(codec: Codec, logits_NC: np.ndarray, labels_NL: np.ndarray) -> Arrays:
    kept = kept_classes(codec, logits_NC, labels_NL)
    kept, values = _falling(kept, np.take_along_axis(logits_NC, kept, -1).astype(np.float16))
    indices = kept.astype(_topk_arrays(codec)["indices"][0])
    log_tail = log_tails(codec, logits_NC, kept).astype(np.float32)
    return {"values": values, "indices": indices, "log_tail": log_tail}


def _decode_topk(codec: Codec, arrays: Arrays, temperature: float | None) -> np.ndarray:
    """Kept logits as stored; the tail's mass spread evenly over its classes, never negative."""
    t = codec.temperatures[0] if temperature is None else temperature
    codec.refuse_temperature(t)
    log_tail = arrays["log_tail"][..., codec.temperatures.index(t)]
    each = t * (log_tail - np.log(codec.num_classes - codec.num_kept))
    return _spread(codec, arrays["indices"], arrays["values"], each)


# `topk8` stores how far a logit lies below the row's largest one, which is all that a softmax sees,
# in cells that grow with the gap: a companding quantiser, as those of ITU-T G.711.
CELLS = 40  # in a factor e of 1 + gap


def gap_codes(gaps: np.ndarray) -> np.ndarray:
    """uint8 codes of gaps >= 0; those above 600 have the last one."""
    return np.floor(CELLS * np.log1p(gaps)).clip(0, 255).astype(np.uint8)


def gaps_of(codes: np.ndarray) -> np.ndarray:
    """float32 gaps of codes: the middle of a cell, at most (1 + gap) / 79 from the true one."""
    return np.expm1((codes.astype(np.float32) + 0.5) / CELLS)


def _topk8_arrays(codec: Codec) -> Shapes:
    by_size = {256: "uint8", 65536: "uint16", 2**32: "uint32"}
    index_type = next(name for size, name in by_size.items() if codec.num_classes <= size)
    return {
        "indices": (index_type, (codec.num_kept,)),
        "gaps": ("uint8", (codec.num_kept - 1,)),
        "tail_gaps": ("uint8", (len(codec.temperatures),)),
    }


def _encode_topk8(codec: Codec, logits_NC: np.ndarray, labels_NL: np.ndarray) -> Arrays:
    wide = logits_NC.astype(np.float64)
    kept = kept_classes(codec, wide, labels_NL)
    kept, values = _falling(kept, np.take_along_axis(wide, kept, -1))
    first = values[..., :1]
    each = tail_logits(codec, log_tails(codec, wide, kept))
    return {
        "indices": kept.astype(_topk8_arrays(codec)["indices"][0]),
        "gaps": gap_codes(first - values[..., 1:]),
        "tail_gaps": gap_codes(np.maximum(first - each, 0)),
    }


def _decode_topk8(codec: Codec, arrays: Arrays, temperature: float | None) -> np.ndarray:
    """The largest logit is 0, the others as far below it as their codes say."""
    t = codec.temperatures[0] if temperature is None else temperature
    codec.refuse_temperature(t)
    each = -gaps_of(arrays["tail_gaps"][..., codec.temperatures.index(t)])
    others = -gaps_of(arrays["gaps"])
    values = np.concatenate([np.zeros((*others.shape[:-1], 1), np.float32), others], axis=-1)
    return _spread(codec, arrays["indices"], values, each)


ENCODINGS: dict[str, Encoding] = {
    "dense": Encoding(
        lambda codec: {"logits": ("float16", (codec.num_classes,))},
        lambda codec, logits, labels: {"logits": logits.astype(np.float16)},
        lambda codec, arrays, temperature: _widen(arrays["logits"]),
        "each logit to 1 part in 2048",
    ),
    "dense32": Encoding(
        lambda codec: {"logits": ("float32", (codec.num_classes,))},
        lambda codec, logits, labels: {"logits": logits},
        lambda codec, arrays, temperature: arrays["logits"],
        "exact float32",
    ),
    "int8": Encoding(
        lambda codec: {
            "codes": ("uint8", (codec.num_classes,)),
            "scale": ("float32", ()),
            "low": ("float32", ()),
        },
        _encode_int8,
        _decode_int8,
        "each logit to 1/510 of the row's range",
    ),
    "topk": Encoding(
        _topk_arrays,
        _encode_topk,
        _decode_topk,
        "kept logits as dense; the tail's mass exact at the declared temperatures",
    ),
    "topk8": Encoding(
        _topk8_arrays,
        _encode_topk8,
        _decode_topk8,
        "kept logits, and the tail's mean one, to 1/79 of 1 + their distance from the first",
    ),
}
TRUNCATED = ("topk", "topk8")


def describe(
    name: str, top_k: int, temperatures: Sequence[float], num_classes: int
) -> EncodingIdentity:
    """The encoding's part of the identity; one that would keep every class becomes `dense`."""
    if name in TRUNCATED and top_k + 2 >= num_classes:
        name = "dense"
    if name not in TRUNCATED:
        return EncodingIdentity(name)
    return EncodingIdentity(name, top_k, tuple(sorted(set(temperatures))))
