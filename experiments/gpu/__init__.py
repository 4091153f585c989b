"""The uses of a GPU that is lent for a short time, in the order of their worth."""
