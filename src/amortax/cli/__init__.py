"""The command line: `amortax fit | sample | check | info | demo`. The entry point is `main`."""

from .main import main

__all__ = ["main"]
