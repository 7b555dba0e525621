"""Run the command as `python -m edgewise`."""

from edgewise.cli import main

main()
