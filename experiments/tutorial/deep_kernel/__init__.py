"""The deep kernel exponential family on tables."""
