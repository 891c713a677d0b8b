"""Language models on their own."""
