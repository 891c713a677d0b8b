"""Training tasks: one pure loss each."""
