"""Reports as self-contained HTML pages: one audit, or several side by side."""
