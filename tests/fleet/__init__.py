"""A fleet in small: node processes that follow an alias, for a test and for a benchmark."""
