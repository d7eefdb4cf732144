"""Encodings of teacher logits: how a row of logits is stored, and how it is read back.

Shape legend: N rows (any leading shape), C classes, L labels a row, K kept classes, T temperatures.
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

    top_k, temperatures: only `topk` has them. num_labels: true classes per row, 2 where views are
    mixed.
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
        fits = encoding.name != "topk" or 0 < encoding.top_k < num_classes - 2
        if encoding.name not in ENCODINGS or not fits:
            raise ValueError(f"{num_classes} classes cannot have the encoding {encoding}")
        labels = 2 if mixes else 1
        return Codec(encoding.name, num_classes, encoding.top_k, encoding.temperatures, labels)

    @property
    def num_kept(self) -> int:
        """Classes a `topk` row keeps: the top K and the labels, or as many runners-up."""
        return self.top_k + self.num_labels

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

        Only `topk` depends on the temperature: there the classes that were not kept share the
        stored tail evenly, so a loss on softmax(logits / temperature) sees the exact tail mass.
        None: the first stored temperature, which is enough for the argmax. Raises:
        UnstoredTemperature, and DamagedTargets for a class that does not exist.
        """
        return ENCODINGS[self.name].decode(self, arrays, temperature)

    def refuse_temperature(self, temperature: float) -> None:
        """Raise UnstoredTemperature when `topk` has no tail for this temperature."""
        if self.name == "topk" and temperature not in self.temperatures:
            grid = ",".join(f"{t:g}" for t in self.temperatures)
            raise UnstoredTemperature(
                f"temperature {temperature:g} is not on the grid of this topk cache ({grid})",
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


def _encode_topk(codec: Codec, logits_NC: np.ndarray, labels_NL: np.ndarray) -> Arrays:
    # Labels first, then by falling logit and rising class: any K + L best of that hold the top K.
    favoured = -logits_NC.astype(np.float64)
    for label_N in np.moveaxis(labels_NL, -1, 0):
        at = np.maximum(label_N, 0)[..., None]
        own = np.take_along_axis(favoured, at, -1)
        np.put_along_axis(favoured, at, np.where(label_N[..., None] >= 0, -np.inf, own), -1)
    kept = np.sort(np.argsort(favoured, axis=-1, kind="stable")[..., : codec.num_kept], axis=-1)
    values = np.take_along_axis(logits_NC, kept, -1).astype(np.float16)
    order = np.argsort(-values, axis=-1, kind="stable")  # ties by class, as `kept` is sorted
    kept, values = np.take_along_axis(kept, order, -1), np.take_along_axis(values, order, -1)
    rest = logits_NC.astype(np.float64)
    np.put_along_axis(rest, kept, -np.inf, -1)
    tails = []
    for temperature in codec.temperatures:
        scaled = rest / temperature
        top = scaled.max(-1, keepdims=True)
        tails.append(np.log(np.exp(scaled - top).sum(-1)) + top[..., 0])
    indices = kept.astype(_topk_arrays(codec)["indices"][0])
    log_tail = np.stack(tails, axis=-1).astype(np.float32)
    return {"values": values, "indices": indices, "log_tail": log_tail}


def _decode_topk(codec: Codec, arrays: Arrays, temperature: float | None) -> np.ndarray:
    """Kept logits as stored; the tail's mass spread evenly over its classes, never negative."""
    t = codec.temperatures[0] if temperature is None else temperature
    codec.refuse_temperature(t)
    log_tail = arrays["log_tail"][..., codec.temperatures.index(t)]
    each = t * (log_tail - np.log(codec.num_classes - codec.num_kept))
    shape = (*arrays["values"].shape[:-1], codec.num_classes)
    logits = np.broadcast_to(each[..., None], shape).astype(np.float32)
    index = arrays["indices"].astype(np.int64)
    if index.size and index.max() >= codec.num_classes:
        raise DamagedTargets(f"a stored class index {index.max()} is not below {codec.num_classes}")
    np.put_along_axis(logits, index, arrays["values"].astype(np.float32), -1)
    return logits


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
}


def describe(
    name: str, top_k: int, temperatures: Sequence[float], num_classes: int
) -> EncodingIdentity:
    """The encoding's part of the identity; a `topk` that would keep every class becomes `dense`."""
    if name == "topk" and top_k + 2 >= num_classes:
        name = "dense"
    if name != "topk":
        return EncodingIdentity(name)
    return EncodingIdentity(name, top_k, tuple(sorted(set(temperatures))))
