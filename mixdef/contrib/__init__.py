"""What one paper needs and nothing else does."""
