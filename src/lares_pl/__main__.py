"""`python -m lares_pl` is the `lares` command."""

from lares_pl.cli.main import main

if __name__ == "__main__":
    main()
