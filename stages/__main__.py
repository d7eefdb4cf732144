"""`python -m stages ...` is `fgkd ...`."""

from .cli import main

main()
