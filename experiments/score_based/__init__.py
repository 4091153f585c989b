"""Score-based models: the score of noised data at all scales, and its samplers."""
