"""Coverage-guided fuzzers of what reads a client's bytes: README.md says how to run them."""
