"""Other tools' file formats: concept files, dictionaries, alignments and arrays."""
