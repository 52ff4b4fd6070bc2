"""`compare`: train the same model once per normalization, batch size and seed, and report."""
