"""What commands hand back, typed and declared once; the same objects are written to and read from the JSON files."""
