"""Texts that tokenizers often get wrong."""

from __future__ import annotations

CONTROL_TEXT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"

HARD_TEXTS = [
    "def f(x: int) -> int:\n    return x ** 2 + 1\n\n\nclass A:\n\tpass\n",
    "if (a<=b && c!=d) { s += '\\n'; } // don't, I'm, we've, they'll, it's, You'Re",
    "SELECT e.name, AVG(salary) OVER (PARTITION BY dept) FROM employees e WHERE id<>-1;",
    "1234567890 3.14159 1,000,000 0x1F 10e-5 ١٢٣ ² ½ Ⅻ v1.2.3 2026-11-24T04:05:06Z",
    "日本語の文章、中文句子。한국어 문장 ไทย हिन्दी עברית العربية Ελληνικά Привет",
    "👍🏽👨‍👩‍👧‍👦 🏳️‍🌈 ✔️ ☃ e\u200dmoji 🇩🇪🇫🇷",
    "line one\r\nline two\r\n\r\nline three\rold mac\n\n\n",
    "a  b   c    d\t\te \n  \n   f     ",
    "   leading and trailing   ",
    "\u00a0no-break\u2003em space\u3000ideographic\u200bzero width\ufeffmark",
    "café naïve Zürich ÅNGSTRÖM ﬁ ß ǆ",
    "…—–“quoted” ‘single’ «guillemets» № ™ © ½ ¿¡",
    "\x00\x01\x7f\x85 control \u2028 separator \u2029 end",
    "https://example.org/a?b=c&d=%20#e  user@example.org  C:\\dir\\file.txt",
    "{\"key\": [1, 2, {\"nested\": null}], 'tab':\t'x'}",
    "~~~!!!???...;;;:::###$$$%%%^^^&&&***((()))___+++===|||```",
    "A" * 50 + " " * 50 + "\n" * 20,
    "\U0001d49c\U0001d4b7 𐍈 \ud7ff\ue000 \U0010ffff",
    "",
]

COMBINING_TEXTS = [
    "cafe\u0301 nai\u0308ve Zu\u0308rich A\u030angstro\u0308m",
    "o\u0323\u0302 \u1ed9 q\u0307\u0323 \u0301alone \u0939\u093f \u1100\u1161\u11a8 \u212b \u2126",
]
"""Decomposed characters: a normaliser (NFC) joins them, llama.cpp does not."""
