"""What a GPU that is lent for a short time is used for, in the order of its worth."""
