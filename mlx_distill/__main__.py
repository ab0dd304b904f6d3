"""Run the command line with `python -m mlx_distill`."""

from mlx_distill.cli import main

main()
