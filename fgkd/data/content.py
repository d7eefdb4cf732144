"""Content hashes of image files, by which a cache and its data are matched."""

from __future__ import annotations

import hashlib

from fgkd.errors import ContentMismatch, Difference

HASH_HEX = 32


def content_hash(data: bytes) -> str:
    """The hash by which a cache knows an image file: blake2b-128 of its bytes, hex."""
    return hashlib.blake2b(data, digest_size=HASH_HEX // 2).hexdigest()


def check_content(key: str, then: str | bytes, data: bytes) -> None:
    """Raise ContentMismatch when an image's bytes are not those a cache was made of."""
    then, now = then.decode() if isinstance(then, bytes) else then, content_hash(data)
    if now != then:
        difference = Difference(f"content of {key}", then, now)
        raise ContentMismatch(
            f"the cache is of other data: {difference}", key=key, differences=[difference]
        )
