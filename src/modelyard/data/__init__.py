"""Data: read from a source, checked, split, prepared once, and served in global batches."""
