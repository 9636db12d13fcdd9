"""The first steps of training, simulated: networks whose matrices an optimiser changes."""
