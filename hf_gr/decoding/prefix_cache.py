"""Keys and values of prompts seen before, for prompts that begin alike."""

from collections import OrderedDict

import torch
from transformers import DynamicCache, PreTrainedModel


class PrefixCache:
    """Stub while it is written."""
