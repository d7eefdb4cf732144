"""What each command does, as a function with its option names and a typed result."""
