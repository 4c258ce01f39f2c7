"""Interests: why people take an item, mined by language models, labelled by what users did (DeepInterestGR)."""

from .table import INTERESTS_FILE, Interests


__all__ = ["INTERESTS_FILE", "Interests"]
