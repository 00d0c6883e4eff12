"""Measurements: quality, speed, memory and cost."""
