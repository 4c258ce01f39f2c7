"""`hf-gr bench`: data sets × methods × seeds from raw data to metrics, and the page made of the results."""

from .run import bench


__all__ = ["bench"]
