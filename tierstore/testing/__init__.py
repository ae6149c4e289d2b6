"""Contract suites and faulty stores, for whoever writes a new backend."""
