"""`python -m mlx_distill` is `mlx-distill`."""

from mlx_distill.cli import main

main()
