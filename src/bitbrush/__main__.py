"""``python -m bitbrush``."""

from bitbrush.cli import main

if __name__ == "__main__":
    main()
