"""``python -m bert``, the same as the command ``bert``."""

from bert.cli import main

main()
