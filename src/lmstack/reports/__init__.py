"""What runs have come to, as pages that one can read: one HTML file each, pictures inline, no scripts."""
