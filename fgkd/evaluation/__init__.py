"""Metrics, intervals, significance tests and batched inference."""
