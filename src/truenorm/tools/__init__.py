"""What is around the layers: explain, compare, bench, migrate, and the command line."""
