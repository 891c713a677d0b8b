"""`python run.py ask`: questions about a scan in the terminal."""
