"""The cache of teacher targets: identity, shards, and the store that writes and reads them."""
