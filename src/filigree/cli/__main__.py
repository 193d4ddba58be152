"""`python -m filigree.cli`."""

from filigree.cli import main

main()
