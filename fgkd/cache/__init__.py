"""Teacher logits on disk: a cache's identity, samples and shards, its writer and its readers.

`open_cache` opens one that is complete. The files are described in FORMAT.md.
"""

from fgkd.cache.reader import Reader
from fgkd.cache.remote import open_cache

__all__ = ["Reader", "open_cache"]
