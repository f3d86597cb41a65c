"""`python -m embedcam`."""

from .cli import main

main()
