"""Code that reproduces single papers and is not used elsewhere."""
