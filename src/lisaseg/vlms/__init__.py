"""SOCKET 1: vision-language models, one file a family.

A family is a subclass of `lisaseg.vlms.base.VisionLanguageModel`; it says how a picture becomes tokens and which language model reads them.
What all share (placing the image tokens, the KV cache, the states that emitted `[SEG]`) stands in `base.py`. Add yours to `VLMS` or name it
"package.module:Class".
"""

from __future__ import annotations

from lisaseg.registry import Registry

VLMS = Registry("vlms", {"tiny": "lisaseg.vlms.tiny:TinyVLM", "llava": "lisaseg.vlms.llava:LlavaVLM"})
