"""The engine: vision tokens leave between the layers of a model nobody modified."""
