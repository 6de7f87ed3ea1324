"""``python -m keyfilters``: the command line."""

from keyfilters.cli import main

main()
