"""Arrays in, arrays out: no files, no Ray; torch only for a K-means on a device."""
