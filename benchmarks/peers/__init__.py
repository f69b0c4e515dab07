"""Other servers beside ours: a small program for each, written as its own documentation does, and the comparison."""
