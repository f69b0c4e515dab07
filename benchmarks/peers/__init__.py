"""Other servers beside ours: a small program for each, as its own documentation writes it, and the comparison."""
