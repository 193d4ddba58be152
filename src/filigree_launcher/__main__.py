"""`python -m filigree_launcher`: write the descriptions from which help is shown, of the library and of extensions."""

from filigree_launcher.describe import write_all

for file in write_all():
    print(f"wrote {file}")
