"""`python -m sd_scissorhands` is `sdscissor`."""

from .cli import main

if __name__ == "__main__":
    main()
