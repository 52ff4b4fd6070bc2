"""What a normalization is, and its formula: no framework is imported here."""
