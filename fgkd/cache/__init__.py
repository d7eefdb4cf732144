"""The cache of a teacher's logits on disk: identity, samples, shards, and what writes and reads them.

`open_cache` opens one that is complete. The files are described in FORMAT.md.
"""

from fgkd.cache.reader import Reader
from fgkd.cache.remote import open_cache

__all__ = ["Reader", "open_cache"]
