"""One file per foreign checkpoint layout, both directions."""
