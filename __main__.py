"""``python -m paretopress`` is the command line, as ``paretopress`` is."""

from .search.cli import main

if __name__ == "__main__":
    main()
