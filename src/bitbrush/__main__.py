"""``python -m bitbrush``."""

from bitbrush.cli import main

main()
