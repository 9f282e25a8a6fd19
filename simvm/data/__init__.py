"""Files that come with simvm."""
