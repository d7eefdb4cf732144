"""Worker processes, and batches of views joined with their targets."""
