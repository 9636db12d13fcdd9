"""Claims of the literature, each with its words, its evidence and the verdict that follows from the numbers."""
