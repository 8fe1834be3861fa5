"""Which languages are related: branches and scripts of common language codes, for a plausibility check and nothing else."""

from __future__ import annotations

BRANCHES = {
    "Germanic": "en de nl sv da no nb nn is af lb fy yi",
    "Romance": "es pt fr it ro ca gl oc la",
    "Slavic": "ru uk be pl cs sk bg mk sr hr bs sl",
    "Baltic": "lt lv",
    "Celtic": "ga cy br gd",
    "Indo-Aryan": "hi ur bn mr gu pa ne si",
    "Iranian": "fa ku ps tg",
    "Hellenic": "el",
    "Semitic": "ar he am mt",
    "Uralic": "fi et hu",
    "Turkic": "tr az kk uz ky tt",
    "Sinitic": "zh yue",
    "Japonic": "ja",
    "Koreanic": "ko",
    "Dravidian": "ta te kn ml",
    "Austronesian": "id ms tl jv su mg",
    "Austroasiatic": "vi km",
    "Tai": "th lo",
    "Bantu": "sw zu xh",
    "Basque": "eu",
    "Kartvelian": "ka",
    "Armenian": "hy",
}
SCRIPTS = {  # of those that are not written in Latin letters
    "Cyrillic": "ru uk be bg mk sr tg kk ky tt",
    "Arabic": "ar fa ur ps",
    "Hebrew": "he yi",
    "Devanagari": "hi mr ne",
    "Han": "zh yue",
}
OF_THEIR_OWN = "el am bn gu pa si ja ko ta te kn ml km th lo ka hy"
_BRANCH = {code: name for name, codes in BRANCHES.items() for code in codes.split()}
_SCRIPT = {code: name for name, codes in SCRIPTS.items() for code in codes.split()}
_SCRIPT |= {code: code for code in OF_THEIR_OWN.split()}


def relation(a: str, b: str) -> str | None:
    """`related` with a branch in common, `unrelated` without a common branch or script; None between, or for unknown codes.

    A code may go on after its language: `pt-BR`, `en_XX`.
    """
    first, second = (code.replace("_", "-").partition("-")[0].lower() for code in (a, b))
    if first not in _BRANCH or second not in _BRANCH:
        return None
    if _BRANCH[first] == _BRANCH[second]:
        return "related"
    return None if _SCRIPT.get(first, "Latin") == _SCRIPT.get(second, "Latin") else "unrelated"
