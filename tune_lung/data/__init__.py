"""From an image folder to balanced batches: scan, decode, split, pixel store."""
