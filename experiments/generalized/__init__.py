"""Generalised energy-based models: a base that draws, an energy that reweighs it."""
