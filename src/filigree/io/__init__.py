"""Files: states, models, and limits of what a file may ask for."""
