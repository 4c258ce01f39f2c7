"""The memory of a model: made, chosen, and kept up to date."""
