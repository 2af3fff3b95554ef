"""Names as somebody gives them who wants the terminal to do something, or a reader to read something else."""

HOSTILE_NAMES = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;http://evil.invalid\x1b\\click\x1b]8;;\x1b\\",
    "cleared screen": "\x1b[2J\x1b[H",
    "eight-bit escape": "\x9b31m\x9d0;title\x9c",
    "keys sent back": "\x1b[6n\x05",
    "line written over": "good\rbad",
    "backspaces": "good\b\b\b\bbad",
    "nul and delete": "a\x00b\x7f",
    "right to left": "\u202edegnarts",
    "isolates": "\u2066a\u2069\u2067b\u2068c",
    "embedded": "\u202a\u202b\u202c\u202d",
    "marks": "\u200e\u200f\u061c",
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "nothing to see": "\u200ba\u2060b\ufeffc\xadd\U000e0041",
    "half a letter": "\udcff\ud800",
}
"""By what they do."""
OBEYED = frozenset(
    letter for name in HOSTILE_NAMES.values() for letter in name if not letter.isascii() or not letter.isprintable()
)
"""What of them must reach nobody."""
