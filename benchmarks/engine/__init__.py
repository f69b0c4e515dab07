"""Time, memory and power of an engine, in a process of its own."""
