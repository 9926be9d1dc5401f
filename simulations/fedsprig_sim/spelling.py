"""Misspelt names, as :mod:`fedsprig.spelling` answers them."""

from fedsprig.spelling import unknown

__all__ = ["unknown"]
