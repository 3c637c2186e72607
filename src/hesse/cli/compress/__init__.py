"""`hesse compress`: which bits, weights and channels of a trained model can go."""
