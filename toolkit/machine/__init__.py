"""Cores, memory, devices and containers."""
