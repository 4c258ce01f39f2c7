"""What the pages that hf_gr writes have in common."""
