"""Measure speed, memory and cost of dropping, as ratios and with controls."""
