"""What to deploy, how many of it, and what became slower."""
