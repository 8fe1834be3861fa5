"""Arrays in, arrays out: no files, no Ray, no torch."""
