"""Methods of Song & Kingma (2021), "How to train your energy-based models"."""
