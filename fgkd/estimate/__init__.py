"""Estimates of memory, FLOPs, time and disk before work begins."""
