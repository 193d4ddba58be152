"""`python -m filigree.cli`."""

from filigree.cli import main

if __name__ == "__main__":
    main()
