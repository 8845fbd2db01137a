"""`python -m segue` is `segue`."""

from segue.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(main())
