"""Maximum entropy generators: an energy, and a generator that is held to be diverse."""
