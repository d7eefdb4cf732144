"""What several tests share: miniature datasets, runs, models and caches, and ways to fail."""
