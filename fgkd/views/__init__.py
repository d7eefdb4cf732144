"""Augmented views: sampling, rendering, mixing and orders, all keyed."""
