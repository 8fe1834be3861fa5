"""The published alignment of concepts, as it is run: a script's loop over module variables. Started by `scores.py`.

Given: `source` and `target` (concept -> set of words), `dictionary` (word -> list of (translation, probability)), `theta`, `types`
and `ratio`. Leaves `aligned`: source concept -> set of target concepts.
"""

aligned = {}
for source_concept, source_words in source.items():  # noqa: F821
    aligned[source_concept] = set()
    matches = []
    for target_concept, target_words in target.items():  # noqa: F821
        count = 0
        total = len(source_words)
        for word in source_words:
            if word in dictionary:  # noqa: F821
                for translation, _probability in dictionary[word]:  # noqa: F821
                    if translation in target_words:
                        count += 1
                        matches.append((word, translation))
                        break
        if count / total > theta and total > types and total / len(target_words) > ratio:  # noqa: F821
            aligned[source_concept].add(target_concept)
