"""Short-run MCMC: an energy whose chain of K moves from noise is the model."""
