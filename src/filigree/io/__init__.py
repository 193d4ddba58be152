"""Files: states and models, and load limits, which bound what a file may make torch build."""
